/** The little of Node that the service module uses, so that the build needs no types of all of it. Not part of what is published. */

declare module "node:net" {
  export interface Socket {
    readonly writableNeedDrain: boolean;
    readonly writableLength: number;
    on(event: "connect" | "drain" | "end" | "close", listener: () => void): this;
    on(event: "data", listener: (piece: Uint8Array) => void): this;
    on(event: "error", listener: (error: Error) => void): this;
    write(bytes: Uint8Array): boolean;
    cork(): void;
    uncork(): void;
    end(): this;
    destroy(): this;
  }
  export function connect(options: { host: string; port: number; noDelay: boolean }): Socket;
}

declare module "node:tls" {
  import type { Socket } from "node:net";
  export interface TLSSocket extends Socket {
    on(event: "connect" | "drain" | "end" | "close" | "secureConnect", listener: () => void): this;
    on(event: "data", listener: (piece: Uint8Array) => void): this;
    on(event: "error", listener: (error: Error) => void): this;
    setNoDelay(on: boolean): this;
  }
  export function connect(options: { host: string; port: number; servername?: string; ca?: string | string[] | undefined; ALPNProtocols: string[] }): TLSSocket;
}

declare module "node:process" {
  export function nextTick(run: () => void): void;
}
