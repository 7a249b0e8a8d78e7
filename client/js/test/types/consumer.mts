// What an application in ESM says in TypeScript; only its types are looked at (npm test).

import { ByeError, Client, type Fate, type Message, type Options } from "trunkline-client";
import { Groups, isLiveRoom, type GroupMessage } from "trunkline-client/groups";
import { Inbox } from "trunkline-client/inbox";
import { Presence, type UserPresence } from "trunkline-client/presence";
import { Service, type Request } from "trunkline-client/service";

const options: Options = { url: "wss://chat.example.com/ws", user: 42n, token: async () => "token", device: "tab" };
const client = new Client(options);
const groups = new Groups(client);
const presence = new Presence(client);
await client.connect();
const fate: Fate = await client.send(7n, "hello", { ack: true });
const messages: AsyncIterable<Message> = client;
const done: AsyncIterable<Message> = new Inbox(client);
const said: AsyncIterable<GroupMessage> = groups;
const worker = new Service({ address: "127.0.0.1:7791", name: "worker" });
const answer = (request: Request) => request.body;
const rooms: boolean = isLiveRoom(77n);
const seen: UserPresence[] = [];
const isFinal = (error: unknown) => error instanceof ByeError && error.reason === 8;

// @ts-expect-error an id is no boolean
void client.send(true, "hello");
export { answer, done, fate, isFinal, messages, presence, rooms, said, seen, worker };
