// Clients of an echo server: npm's ws, undici's, and the one that Node has built in since version 22.
//
//	node client.mjs ws://host:port/ MAX wss://host:port/ CERT
//
// MAX is the largest message that the server takes, CERT the file of the second server's certificate.
// It prints a line for each client, and ends with status 1 when something was wrong.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.cwd(), "package.json"));
const [url, most, secure, cert] = process.argv.slice(2);
const { WebSocket: npm } = require("ws");
const { WebSocket: undici } = require("undici");

function check(ok, what) { if (!ok) throw new Error(what); }

// A Peer is a socket whose messages, and then its end, are taken one after the other.
class Peer {
  constructor(socket) {
    this.socket = socket;
    this.items = [];
    this.arrived = () => {};
    socket.binaryType = "arraybuffer";
    const add = (item) => { this.items.push(item); this.arrived(); };
    socket.onopen = () => add({ open: true });
    socket.onmessage = ({ data }) => add({ data });
    socket.onclose = ({ code, reason, wasClean }) => add({ end: `${code} ${reason} ${wasClean}` });
    socket.onerror = () => {}; // the end follows
  }

  async next(kind) {
    while (this.items.length === 0) await new Promise((resolve) => { this.arrived = resolve; });
    const item = this.items.shift();
    check(kind in item, `${kind}: ${JSON.stringify(item).slice(0, 100)}`);
    return item[kind];
  }
}

async function talk(open) {
  const peer = new Peer(open()), { socket } = peer;
  await peer.next("open");
  check(socket.protocol === "p", "subprotocol " + socket.protocol);
  check(!socket.extensions || socket.extensions.startsWith("permessage-deflate"), "extensions " + socket.extensions);
  for (const size of [0, 1, 125, 126, 4095, 65535, 65536, 200_000, Number(most) / 2 - 1]) {
    const text = "wörld€😀".repeat(size / 7 + 1).slice(0, size / 3);
    const whole = text.isWellFormed?.() ?? true ? text : text.slice(0, -1); // not the half of a surrogate pair
    socket.send(whole);
    const back = await peer.next("data");
    check(back === whole, `text of ${whole.length}: ${back.length}`);
    const bytes = Uint8Array.from({ length: size }, (_, i) => i % 251 ^ i >> 8);
    socket.send(bytes);
    check(Buffer.compare(Buffer.from(await peer.next("data")), Buffer.from(bytes)) === 0, `bytes of ${size}`);
  }
  for (let i = 0; i < 100; i++) socket.send(String(i)); // without waiting
  for (let i = 0; i < 100; i++) check(await peer.next("data") === String(i), "order");
  if (socket.ping) { // only npm's ws can
    const pong = new Promise((resolve) => socket.once("pong", resolve));
    socket.ping("there?");
    check(String(await pong) === "there?", "pong");
  }
  socket.close(4321, "so long");
  check((await peer.next("end")).startsWith("4321 "), "the end");

  const big = new Peer(open());
  await big.next("open");
  big.socket.send(new Uint8Array(Number(most) + 1).map((_, i) => i * i >> 3));
  const end = await big.next("end");
  check(end.startsWith(`1009 message over ${most} bytes`), "the end: " + end);
  return socket.extensions;
}

const clients = {
  "ws": () => new npm(url, ["x", "p"], { perMessageDeflate: { threshold: 100 } }),
  "ws, plain": () => new npm(url, ["p"], { perMessageDeflate: false }),
  "ws, wss": () => new npm(secure, ["p"], { ca: readFileSync(cert) }),
  "undici": () => new undici(url, ["p"]),
};
if (globalThis.WebSocket) clients["built in"] = () => new WebSocket(url, ["p"]);

for (const [name, open] of Object.entries(clients)) {
  try {
    console.log(`ok ${name}: ${await talk(open) || "plain"}`);
  } catch (err) {
    console.log(`FAILED ${name}: ${err.stack ?? err}`);
    process.exitCode = 1;
  }
}
process.exit();
