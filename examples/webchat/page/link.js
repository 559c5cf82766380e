// Link keeps a page connected and loses no line. What it has to send it keeps until the server has
// said it; what it was given it knows by number, and asks for the rest when it connects again.
// The messages are described in wire.go.

const leastWait = 250, mostWait = 10_000; // between two attempts, in ms
const checkEvery = 15_000, checkFor = 10_000; // whether the server still answers, in ms
const inFlight = 32; // lines under way
const lineEvery = 10; // ms, when there are many: the server bounds the rate

export class Link {
  // on has: state(name, text), closed(why), welcome(msg, moved), line(line, mine), missing(n), typing(name),
  // rooms(list), here(msg), outbox(items), refused(field, why), dropped(item, why).
  constructor(url, on) {
    this.url = url;
    this.on = on;
    this.socket = null;
    this.joined = false;
    this.stopped = true; // until join, and when nobody wants a connection
    this.wait = leastWait;
    this.room = this.epoch = "";
    this.last = 0;
    this.sent = 0; // how many of the outbox are under way
    this.tokens = inFlight; // lines that may be sent at once
    this.filled = Date.now();
    const kept = JSON.parse(sessionStorage.getItem("webchat") ?? "null");
    this.kept = kept ?? { token: newToken(), name: "", room: "", n: 0, outbox: [] };
    addEventListener("online", () => this.connectNow());
    addEventListener("offline", () => this.drop());
    setInterval(() => this.check(), checkEvery);
  }

  keep() { sessionStorage.setItem("webchat", JSON.stringify(this.kept)); }

  // join enters a room under a name: at first, to move, and to rename.
  join(name, room) {
    this.want = { name, room };
    this.stopped = false;
    this.move();
  }

  // move sends the hello that is wanted. Lines for the room that we leave are said there first.
  move() {
    if (this.joined && this.kept.outbox.length > 0) return;
    if (this.socket?.readyState === WebSocket.OPEN) this.hello();
    else this.connectNow();
  }

  hello() {
    const target = this.want && this.kept.outbox.length === 0 ? this.want
      : { name: this.want?.name ?? this.kept.name, room: this.kept.room || this.want.room };
    this.asked = target;
    this.send({ t: "hello", token: this.kept.token, ...target, epoch: this.sameRoom(target.room) ? this.epoch : "", last: this.sameRoom(target.room) ? this.last : 0 });
  }

  sameRoom(name) { return this.room !== "" && fold(name) === fold(this.room); }

  say(text) {
    this.kept.outbox.push({ n: ++this.kept.n, text });
    this.keep();
    this.on.outbox(this.kept.outbox);
    this.flush();
  }

  typing() { if (this.joined) this.send({ t: "typing" }); }

  // askRooms asks at most once in two seconds, however often it is called.
  askRooms() {
    this.asking ??= setTimeout(() => {
      this.asking = null;
      this.lastAsked = Date.now();
      if (this.joined) this.send({ t: "rooms" });
    }, Math.max(0, (this.lastAsked ?? 0) + 2000 - Date.now()));
  }

  send(msg) { if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(msg)); }

  flush() {
    if (!this.joined || this.socket.readyState !== WebSocket.OPEN) return;
    const now = Date.now(), until = Math.min(inFlight, this.kept.outbox.length);
    this.tokens = Math.min(inFlight, this.tokens + Math.max(0, now - this.filled) / lineEvery);
    this.filled = now;
    for (; this.sent < until && this.tokens >= 1; this.sent++, this.tokens--) {
      const { n, text } = this.kept.outbox[this.sent];
      this.send({ t: "say", n, text });
    }
    if (this.sent < until) {
      this.pacing ??= setTimeout(() => { this.pacing = null; this.flush(); }, 10 * lineEvery);
    }
  }

  // said forgets lines up to n: the server has them.
  said(n) {
    const box = this.kept.outbox;
    let gone = 0;
    while (gone < box.length && box[gone].n <= n) gone++;
    if (gone > 0) {
      box.splice(0, gone);
      this.sent = Math.max(0, this.sent - gone);
    }
    this.kept.n = Math.max(this.kept.n, n);
    this.keep();
    this.on.outbox(box);
    if (this.joined) this.flush();
    if (this.joined && this.want && box.length === 0) this.move();
  }

  connectNow() {
    clearTimeout(this.timer);
    if (this.stopped || this.socket) return;
    this.on.state("connecting", "Connecting…");
    const socket = this.socket = new WebSocket(this.url);
    const tooLong = setTimeout(() => socket.close(), checkFor);
    socket.onopen = () => { clearTimeout(tooLong); this.hello(); };
    socket.onmessage = (ev) => { this.heard = Date.now(); this.take(JSON.parse(ev.data)); };
    socket.onclose = (ev) => { clearTimeout(tooLong); this.lost(socket, ev); };
  }

  // drop gives a connection up without waiting for the other side to close it.
  drop() {
    const socket = this.socket;
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.lost(socket, { code: 1006 });
  }

  lost(socket, ev) {
    if (this.socket !== socket) return;
    this.socket = null;
    this.joined = false;
    this.sent = 0;
    if (ev.code === 4001) {
      this.stopped = true;
      this.on.state("ended", "Open in another tab");
    }
    if (this.stopped) return;
    if (ev.code === 1008 && ev.reason) this.on.closed(ev.reason);
    this.on.state("waiting", navigator.onLine ? "Reconnecting…" : "Offline");
    this.timer = setTimeout(() => this.connectNow(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(2 * this.wait, mostWait);
  }

  // check finds out whether a connection that looks open is dead.
  check() {
    if (!this.joined || this.checking) return;
    const asked = Date.now();
    this.checking = true;
    this.send({ t: "rooms" });
    setTimeout(() => {
      this.checking = false;
      if (this.joined && (this.heard ?? 0) < asked) this.drop();
    }, checkFor);
  }

  take(msg) {
    switch (msg.t) {
      case "welcome": {
        const moved = !this.sameRoom(msg.room);
        if (moved || msg.epoch !== this.epoch) this.last = 0;
        Object.assign(this, { room: msg.room, epoch: msg.epoch, me: msg.me, joined: true, wait: leastWait });
        Object.assign(this.kept, { name: msg.name, room: msg.room });
        if (this.want && this.asked?.name === this.want.name && this.asked.room === this.want.room) this.want = null;
        this.on.state("online", "Online");
        this.on.welcome(msg, moved);
        if (msg.missed) this.on.missing(msg.missed);
        this.here = msg.last ?? 0;
        this.on.here(msg);
        this.said(msg.n ?? 0);
        this.askRooms();
        break;
      }
      case "lines":
        for (const line of msg.lines) {
          if (line.seq <= this.last) continue;
          this.last = line.seq;
          if (line.gap) this.on.missing(-2);
          const mine = line.by !== undefined && line.by === this.me;
          this.on.line(line, mine, line.seq > this.here);
          if (mine) this.said(line.n ?? 0);
        }
        break;
      case "gap":
        this.here = msg.last ?? 0;
        this.on.missing(msg.missed);
        this.on.here(msg);
        break;
      case "here":
        this.on.here(msg);
        break;
      case "ack":
        this.said(msg.n);
        break;
      case "no":
        if (msg.n) {
          const item = this.kept.outbox.find((i) => i.n === msg.n);
          if (item) this.on.dropped(item, msg.why);
          this.said(msg.n);
        } else {
          if (!this.joined) this.stopped = true;
          this.want = null;
          this.on.refused(msg.field, msg.why, this.joined);
          if (!this.joined) {
            this.drop();
            this.on.state("waiting", "Not connected");
          }
        }
        break;
      case "typing":
        this.on.typing(msg.name);
        break;
      case "rooms":
        this.on.rooms(msg.rooms ?? []);
    }
  }
}

function newToken() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

export function fold(s) { return s.toUpperCase().toLowerCase(); }
