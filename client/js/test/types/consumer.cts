// The same application in CJS: under node16 TypeScript refuses types of ESM for what is required.

import { ByeError, Client, type Fate, type Message, type Options } from "trunkline-client";
import { Groups, isLiveRoom, type GroupMessage } from "trunkline-client/groups";
import { Presence, type UserPresence } from "trunkline-client/presence";
import { Service, type Request } from "trunkline-client/service";
import trunkline = require("trunkline-client");

const options: Options = { url: "wss://chat.example.com/ws", user: 42n, token: async () => "token", device: "tab" };
const client = new Client(options);
const groups = new Groups(client);
const presence = new Presence(client);
const fate: Promise<Fate> = client.connect().then(() => client.send(7n, "hello", { ack: true }));
const messages: AsyncIterable<Message> = client;
const said: AsyncIterable<GroupMessage> = groups;
const worker = new Service({ address: "127.0.0.1:7791", name: "worker" });
const answer = (request: Request) => request.body;
const rooms: boolean = isLiveRoom(77n);
const seen: UserPresence[] = [];
const isFinal = (error: unknown) => error instanceof ByeError && error.reason === 8;
// Required as one file, the client has all of its parts, of the same classes.
const all: Groups = new trunkline.Groups(client);

// @ts-expect-error an id is no boolean
void client.send(true, "hello");
export { all, answer, fate, isFinal, messages, presence, rooms, said, seen, worker };
