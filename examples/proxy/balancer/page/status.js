// The page asks for status.json once a second and shows it. Elements stay where they are and get
// new text, so that the focus stays too.

const $ = id => document.getElementById(id);

function make(tag, className, ...children) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  e.append(...children);
  return e;
}

function set(e, text) {
  text = String(text);
  if (e.textContent !== text) e.textContent = text;
}

function count(n) { return n.toLocaleString("en"); }

function bytes(n) {
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (n < 1000 || unit === "TB") return (unit === "B" || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + unit;
    n /= 1000;
  }
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return s + " s";
  if (s < 7200) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " days";
}

// keep has parent hold one child for each item, in their order, made by make(item) and filled by
// fill(child, item). A child belongs to the item of the same key.
function keep(parent, items, key, create, fill) {
  const old = new Map([...parent.children].map(e => [e.dataset.key, e]));
  let at = parent.firstElementChild;
  for (const item of items) {
    let e = old.get(key(item));
    if (!e) {
      e = create(item);
      e.dataset.key = key(item);
    }
    old.delete(key(item));
    if (e === at) at = at.nextElementSibling;
    else parent.insertBefore(e, at);
    fill(e, item);
  }
  for (const e of old.values()) e.remove();
}

function rows(parent, items, key, cells) {
  keep(parent, items, key, () => make("tr"), (tr, item) => {
    const want = cells(item);
    while (tr.children.length < want.length) tr.append(make("td"));
    want.forEach((text, i) => {
      const td = tr.children[i];
      td.className = typeof text === "number" || /^[\d.,–]+( [kMGT]?B)?$/.test(text) ? "" : "text";
      set(td, typeof text === "number" ? count(text) : text);
    });
  });
}

// A chart of the last two minutes: an area below the first of its lines, each a class of the style.
const SVG = "http://www.w3.org/2000/svg", width = 240, height = 60, seconds = 120;

function svg(tag, attributes) {
  const e = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  return e;
}

function chart(figure, lines, show) {
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
  for (const y of [0, height / 2, height]) picture.append(svg("line", { class: "grid", x1: 0, x2: width, y1: y, y2: y }));
  const area = svg("path", { class: "area" });
  const paths = lines.map(([className]) => svg("path", { class: className }));
  picture.append(area, ...paths);
  const most = make("span");
  figure.append(picture, make("p", "axis", make("span", "", "2 min ago"), most, make("span", "", "now")));
  return points => {
    const top = Math.max(1, ...points.flatMap(p => lines.map(([, value]) => value(p))));
    const end = points.at(-1)?.at ?? 0;
    const x = p => width - (end - p.at) / (seconds - 1) * width;
    const visible = points.filter(p => end - p.at < seconds);
    lines.forEach(([, value], i) => {
      const d = visible.map((p, n) => `${n ? "L" : "M"}${x(p).toFixed(1)} ${(height - value(p) / top * height).toFixed(1)}`).join("");
      paths[i].setAttribute("d", d);
      if (i === 0) area.setAttribute("d", d && `${d}L${width} ${height}L${x(visible[0]).toFixed(1)} ${height}Z`);
    });
    set(most, "at most " + show(top));
    const last = points.at(-1);
    if (last) picture.setAttribute("aria-label", lines.map(([name, value]) => `${name}: ${show(value(last))}`).join(", "));
  };
}

const rate = n => bytes(n) + "/s";
const drawOpen = chart($("open"), [["up", p => p.open]], count);
const drawBytes = chart($("bytes"), [["up", p => p.up], ["down", p => p.down]], rate);
const drawNew = chart($("new"), [["up", p => p.new]], count);

async function drain(button) {
  const { pool, upstream, on } = button.dataset;
  button.disabled = true;
  try {
    const answer = await fetch("drain", { method: "POST", body: new URLSearchParams({ pool, upstream, on }) });
    if (!answer.ok) throw new Error(await answer.text());
    await look();
  } catch (err) {
    fail(err);
  }
}

function card(pool) {
  const button = make("button");
  button.type = "button";
  button.dataset.pool = pool.name;
  button.addEventListener("click", () => drain(button));
  return make("div", "upstream", make("b"), make("span", "state"), make("div", "bar", make("i")), make("span", "count"), make("p", "why"), button);
}

function fillCard(e, u, now) {
  const [name, state, bar, open, why, button] = e.children;
  e.dataset.state = u.state;
  set(name, u.addr);
  set(state, u.state === "ejected" ? `ejected, ${span((new Date(u.until) - now) / 1000)} left` : u.checked || u.state !== "up" ? u.state : "not checked");
  bar.firstChild.style.width = Math.min(100, u.limit ? u.conns / u.limit * 100 : u.conns ? u.share * 100 : 0) + "%";
  set(open, u.limit ? `${count(u.conns)} of ${count(u.limit)}` : count(u.conns) + " open");
  set(why, u.why ?? "");
  const draining = u.state === "draining";
  button.dataset.upstream = u.addr;
  button.dataset.on = String(!draining);
  button.disabled = u.by_config;
  set(button, u.by_config ? "Drained by the configuration" : draining ? "Take new connections again" : "Drain");
  button.setAttribute("aria-label", `${button.textContent}: ${u.addr}`);
}

function show(s) {
  const now = new Date(s.now), last = s.history.at(-1);
  set($("since"), `up for ${span((now - new Date(s.started)) / 1000)}, configuration of ${new Date(s.loaded).toLocaleTimeString()}`);
  $("problem").hidden = !s.problem;
  set($("problem"), s.problem ? "The last reload was refused; the configuration before it holds.\n" + s.problem : "");

  const open = s.listeners.reduce((n, l) => n + l.open, 0);
  set($("open").querySelector(".now"), count(open));
  if (last) {
    $("bytes").querySelector(".now").replaceChildren(
      make("span", "up", "↑ " + rate(last.up)), "  ", make("span", "down", "↓ " + rate(last.down)));
    set($("new").querySelector(".now"), count(last.new));
  }
  drawOpen(s.history);
  drawBytes(s.history);
  drawNew(s.history);

  keep($("health"), s.pools, p => p.name, p => make("div", "", make("h3", "", p.name, make("small")), make("div", "cards")), (e, p) => {
    set(e.querySelector("small"), p.balance.replaceAll("_", " ") + (p.waiting ? `, ${count(p.waiting)} waiting` : ""));
    const busiest = Math.max(1, ...p.upstreams.map(u => u.conns));
    keep(e.lastChild, p.upstreams, u => u.addr, () => card(p), (c, u) => fillCard(c, { ...u, share: u.conns / busiest }, now));
  });
  rows($("upstreams"), s.pools.flatMap(p => p.upstreams.map(u => ({ ...u, pool: p.name }))), u => u.pool + " " + u.addr, u => [
    `${u.pool} ${u.addr}`, u.state, u.conns, u.limit || "–", u.attempts, u.failures, u.ejections, u.downs, u.resets,
    bytes(u.bytes_up), bytes(u.bytes_down)]);
  rows($("pools"), s.pools, p => p.name, p => [
    p.name, p.balance, p.waiting, p.queued, p.queue_full, p.queue_late, p.no_upstream, p.retries]);
  const ends = s.listeners[0]?.ends ?? [];
  while ($("listenerhead").children.length < 5 + ends.length) $("listenerhead").append(make("th"));
  ends.forEach((end, i) => set($("listenerhead").children[5 + i], end.name.replaceAll("_", " ")));
  rows($("listeners"), s.listeners, l => l.name + " " + l.addr, l => [
    l.name + (l.leaving ? " (leaving)" : ""), l.addr, l.open, l.accepted, l.refused, ...l.ends.map(e => e.n)]);
}

function live(state, text) {
  $("live").dataset.state = state;
  set($("live"), text);
}

let answered = Date.now();

function fail(err) {
  live("lost", `no answer for ${span((Date.now() - answered) / 1000)}`);
  console.debug(String(err));
}

async function look() {
  const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error("the answer is " + answer.status);
  show(await answer.json());
  answered = Date.now();
  live("live", "live");
}

// One question at a time, and none while nobody looks.
for (;;) {
  if (!document.hidden) await look().catch(fail);
  await new Promise(done => setTimeout(done, 1000));
}
