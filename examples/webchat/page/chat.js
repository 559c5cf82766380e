// The page: what a Link reports, put into the document. All text that others wrote goes in by
// textContent, so none of it can be markup.

import { Link, fold } from "./link.js";

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const mostLines = 1000; // that stay in the document

const people = new Map(); // folded name -> name
const typists = new Map(); // name -> timer
const shown = new Set(); // what others and we said, by session and number
let count = 0; // of people, of whom we may not have all names
let unseen = 0; // lines said while the page was not looked at
let before = null; // the last line that was shown, if it was said

const link = new Link((location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/ws", {
  state(name, text) {
    root.dataset.state = name;
    $("state").textContent = text;
    if (name === "ended") note("gap", "This chat goes on in another tab. Reload the page to have it here.");
    if (name !== "online") clearTypists();
    enable(name !== "ended" && link.room !== "");
  },
  closed(why) {
    const text = `The server closed the connection: ${why}`;
    if ($("log").lastElementChild?.textContent !== text) note("gap", text);
  },
  welcome(msg, moved) {
    $("rename").hidden = false;
    $("log").setAttribute("aria-live", "off"); // what was said before is not read out
    if (moved) {
      $("log").replaceChildren();
      shown.clear();
      before = null;
    }
    $("hello").close();
    $("problem").textContent = "";
    $("room").textContent = msg.room;
    $("myname").textContent = msg.name;
    title();
    enable(true);
    if (moved && matchMedia("(min-width: 761px)").matches) $("text").focus();
  },
  here(msg) {
    people.clear();
    for (const name of msg.here ?? []) people.set(fold(name), name);
    count = msg.count ?? people.size;
    showPeople();
  },
  missing(n) {
    note("gap", n < -1 ? "Lines are missing here" : n < 0 ? "This room is a new one: lines may be missing here" : n === 1 ? "1 line is missing here" : `${n} lines are missing here`);
  },
  line(line, mine, fresh) {
    const stick = atBottom();
    if (fresh) $("log").setAttribute("aria-live", "polite");
    if (line.kind === "say") showLine(line, mine);
    else {
      note("note", { came: `${line.name} joined`, left: `${line.name} ${line.text}`, named: `${line.name} is now ${line.text}` }[line.kind]);
      $("log").lastElementChild.dataset.seq = line.seq;
    }
    if (fresh) movePeople(line);
    trim();
    settle(stick, mine);
    if (document.hidden && line.kind === "say" && !mine) {
      unseen++;
      title();
    }
  },
  outbox(items) {
    const stick = atBottom();
    $("pending").replaceChildren(...items.map((item) => {
      const li = element("li", "mine waits first");
      li.append(bubble(item.text, "not sent yet"));
      return li;
    }));
    settle(stick, false);
  },
  typing(name) {
    if (name === link.kept.name) return;
    clearTimeout(typists.get(name));
    typists.set(name, setTimeout(() => { typists.delete(name); showTypists(); }, 4000));
    showTypists();
  },
  rooms(list) {
    $("rooms").replaceChildren(...list.filter((r) => r.users > 0 || link.sameRoom(r.name)).map((r) => {
      const li = element("li"), b = element("button");
      b.type = "button";
      b.append(element("span", "", r.name), element("small", "", String(r.users)));
      b.setAttribute("aria-label", `${r.name}, ${r.users} ${r.users === 1 ? "person" : "people"}`);
      if (link.sameRoom(r.name)) b.setAttribute("aria-current", "true");
      b.onclick = () => enter(r.name);
      li.append(b);
      return li;
    }));
  },
  refused(field, why, joined) {
    if (joined && !$("hello").open) {
      $("problem").textContent = why;
      return;
    }
    ask();
    $("helloproblem").textContent = why;
    const input = $(field === "room" ? "where" : "name");
    input.setAttribute("aria-invalid", "true");
    input.focus();
  },
  dropped(item, why) {
    $("problem").textContent = why;
    if ($("text").value === "") $("text").value = item.text;
  },
});

function element(tag, classes = "", text) {
  const e = document.createElement(tag);
  if (classes) e.className = classes;
  if (text !== undefined) e.textContent = text;
  return e;
}

// hue gives a name its colour. A style property takes a number only.
function hue(e, name) {
  let h = 2166136261;
  for (const c of fold(name)) h = Math.imul(h ^ c.codePointAt(0), 16777619);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  e.style.setProperty("--hue", ((h ^ (h >>> 13)) >>> 0) % 360);
  return e;
}

function dot(name) {
  const d = hue(element("span", "dot", [...name][0].toUpperCase()), name);
  d.setAttribute("aria-hidden", "true");
  return d;
}

function bubble(text, when, at) {
  const p = element("p", "bubble");
  const t = element("time", "", when);
  if (at) t.dateTime = new Date(at).toISOString();
  p.append(element("span", "said", text), t);
  return p;
}

function showLine(line, mine) {
  const key = `${line.by} ${line.n}`;
  if (line.by && shown.has(key)) return; // said again to a server that had forgotten it
  shown.add(key);
  if (shown.size > 2 * mostLines) shown.delete(shown.values().next().value);
  const first = !before || before.name !== line.name || before.by !== line.by || line.at - before.at > 5 * 60_000;
  const li = element("li", (mine ? "mine" : "") + (first ? " first" : ""));
  li.dataset.seq = line.seq;
  if (mine) li.append(element("span", "hidden", "You: "));
  else if (first) {
    const who = hue(element("p", "who"), line.name);
    who.append(dot(line.name), element("span", "", line.name));
    li.append(who);
  } else li.append(element("span", "hidden", line.name + ": "));
  li.append(bubble(line.text, new Date(line.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }), line.at));
  $("log").append(li);
  before = line;
  if (typists.has(line.name)) {
    clearTimeout(typists.get(line.name));
    typists.delete(line.name);
    showTypists();
  }
}

// trim bounds the document, and says at its top that there was more.
function trim() {
  const log = $("log");
  if (log.children.length <= mostLines) return;
  if (!log.firstElementChild.matches(".older")) log.firstElementChild.before(element("li", "gap older", "Older lines are not shown any more"));
  while (log.children.length > mostLines) log.children[1].remove();
}

function note(kind, text) {
  const stick = atBottom();
  $("log").append(element("li", kind, text));
  before = null;
  settle(stick, false);
}

function movePeople(line) {
  if (line.kind === "say") return;
  if (line.kind !== "came") people.delete(fold(line.name));
  if (line.kind === "came") people.set(fold(line.name), line.name);
  if (line.kind === "named") people.set(fold(line.text), line.text);
  count += { came: 1, left: -1, named: 0 }[line.kind];
  showPeople();
  link.askRooms();
}

function showPeople() {
  const names = [...people.values()].sort((a, b) => a.localeCompare(b));
  $("people").replaceChildren(...names.slice(0, 200).map((name) => {
    const li = element("li");
    li.append(dot(name), element("span", "", name === link.kept.name ? name + " (you)" : name));
    return li;
  }));
  if (count > names.length) $("people").append(element("li", "", `and ${count - names.length} more`));
  $("count").textContent = `${count} ${count === 1 ? "person" : "people"}`;
}

function showTypists() {
  const names = [...typists.keys()];
  $("typing").textContent = names.length === 0 ? "" : names.length === 1 ? `${names[0]} is typing…`
    : names.length === 2 ? `${names[0]} and ${names[1]} are typing…` : "Several people are typing…";
}

function clearTypists() {
  for (const timer of typists.values()) clearTimeout(timer);
  typists.clear();
  showTypists();
}

// The region counts from its end (column-reverse), so it keeps the newest line in view by itself
// when a keyboard comes up, and keeps what is read in view when lines come below.
function atBottom() { return $("scroll").scrollTop > -60; }

// settle shows the newest line, if it was in view, or says that there is one.
function settle(stick, always) {
  if (stick || always) $("scroll").scrollTop = 0;
  $("down").hidden = atBottom();
}

function title() {
  document.title = (unseen > 0 ? `(${unseen}) ` : "") + (link.room || "webchat");
}

function enable(on) { $("text").disabled = $("send").disabled = !on; }

function enter(room) {
  drawer(false);
  $("problem").textContent = "";
  link.join(link.kept.name, room);
}

function ask() {
  drawer(false);
  $("hellohead").textContent = link.room ? "Your name and room" : "Join the chat";
  $("name").value ||= link.kept.name;
  if (link.room) $("where").value = link.room;
  $("helloproblem").textContent = "";
  if (!$("hello").open) $("hello").showModal();
}

function drawer(open) {
  document.body.classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) {
    link.askRooms();
    $("side").querySelector("button, input")?.focus();
  }
}

$("helloform").addEventListener("submit", (ev) => {
  ev.preventDefault();
  for (const id of ["name", "where"]) $(id).removeAttribute("aria-invalid");
  $("helloproblem").textContent = "";
  link.join($("name").value.trim(), $("where").value.trim());
});
// Without a name there is nothing behind the dialog.
$("hello").addEventListener("cancel", (ev) => { if (!link.room) ev.preventDefault(); });

let told = 0;
$("text").addEventListener("input", () => {
  $("problem").textContent = "";
  if ($("text").value !== "" && Date.now() - told > 2000) {
    told = Date.now();
    link.typing();
  }
});
$("say").addEventListener("submit", (ev) => {
  ev.preventDefault();
  const text = $("text").value.trim();
  if (text === "") return;
  if (new TextEncoder().encode(text).length > 1000) {
    $("problem").textContent = "That line is too long.";
    return;
  }
  $("text").value = "";
  told = 0;
  link.say(text);
  settle(true, true);
});
$("newroom").addEventListener("submit", (ev) => {
  ev.preventDefault();
  const room = $("roomname").value.trim();
  if (room === "") return;
  $("roomname").value = "";
  enter(room);
});
$("menu").onclick = () => drawer(!document.body.classList.contains("open"));
$("shade").onclick = () => drawer(false);
$("rename").onclick = () => { $("name").value = link.kept.name; ask(); };
$("down").onclick = () => settle(true, true);
$("scroll").addEventListener("scroll", () => { if (atBottom()) $("down").hidden = true; });
addEventListener("keydown", (ev) => {
  if (ev.key === "Escape" && document.body.classList.contains("open")) {
    drawer(false);
    $("menu").focus();
  }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) { unseen = 0; title(); } });

link.on.outbox(link.kept.outbox);
if (link.kept.name && link.kept.room) link.join(link.kept.name, link.kept.room);
else ask();
