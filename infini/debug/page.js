// The page of infini.debug.show, on top of the script of infini.core.html.
// --- parts that are packed -----------------------------------------------------------------------
async function unpack(inside) {
  for (const part of inside.querySelectorAll("template[data-packed]")) {
    const bytes = Uint8Array.from(atob(part.dataset.packed), (c) => c.charCodeAt(0));
    part.removeAttribute("data-packed");
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const content = await new Response(stream).text();
    const range = document.createRange(); range.selectNode(part);
    part.replaceWith(range.createContextualFragment(content));
  }
}
const SHOWN = 400000;
function paint(pre) {
  if (pre.dataset.painted || pre.textContent.length > SHOWN) return;
  pre.dataset.painted = "1";
  const comment = pre.className === "llvm" ? ";.*" : "(?:#|//).*";
  const pattern = new RegExp(`(${comment})|^([\\w.$@]+:)|([%@][\\w.]+)|(^\\s+(?:%[\\w.]+ = )?)([a-z][\\w.]*)`, "gm");
  const clean = (t) => t.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  let out = "", end = 0; const all = pre.textContent;
  for (const m of all.matchAll(pattern)) {
    out += clean(all.slice(end, m.index)); end = m.index + m[0].length;
    if (m[1]) out += `<span class="c">${clean(m[1])}</span>`;
    else if (m[2]) out += `<span class="l">${clean(m[2])}</span>`;
    else if (m[3]) out += `<span class="r">${clean(m[3])}</span>`;
    else out += clean(m[4]).replace(/%[\w.]+/, (r) => `<span class="r">${r}</span>`) + `<span class="o">${m[5]}</span>`;
  }
  pre.innerHTML = out + clean(all.slice(end));
}
document.addEventListener("toggle", async (event) => {
  const opened = event.target;
  if (!opened.open) return;
  const own = opened.classList.contains("kernel") ? [] : [opened];
  for (const item of own) await unpack(item);
  if (opened.classList.contains("text") || opened.id === "entry") opened.querySelectorAll("pre").forEach(paint);
  mark();
}, true);

// --- links open what they lead to ------------------------------------------------------------------
async function reveal(id, behavior = "smooth") {
  let found = document.getElementById(id);
  if (!found) { await unpackAll(); found = document.getElementById(id); }
  for (let e = found; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (found) found.scrollIntoView({ block: "start", behavior });
}
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link) { event.preventDefault(); const id = link.getAttribute("href").slice(1);
    reveal(id).then(() => history.replaceState(null, "", "#" + id)).catch(() => {}); }
});
const unpackAll = () => unpack(document.querySelector("main"));
(async () => {
  for (const open of document.querySelectorAll("details.stage[open]:not(#kernels)")) await unpack(open);
  if (location.hash) await reveal(location.hash.slice(1), "instant");
})();

// --- the user's lines and what became of them -------------------------------------------------------
let kept = null, lit = null;
function mark() {
  document.querySelectorAll(".kept").forEach((e) => e.classList.remove("kept"));
  if (kept) document.querySelectorAll(`[data-line="${kept}"]`).forEach((e) => e.classList.add("kept"));
}
// Only the column moves: `scrollIntoView` would move the page under the pointer, too.
function within(column, element) {
  const box = element.getBoundingClientRect(), room = column.getBoundingClientRect();
  if (box.top < room.top) column.scrollTop += box.top - room.top - 40;
  else if (box.bottom > room.bottom) column.scrollTop += box.bottom - room.bottom + 40;
}
function light(line, from) {
  if (line === lit) return;
  document.querySelectorAll(".lit").forEach((e) => e.classList.remove("lit"));
  lit = line;
  if (!line) return;
  document.querySelectorAll(`[data-line="${line}"]`).forEach((e) => e.classList.add("lit"));
  const own = document.querySelector(`[data-source][data-line="${line}"]`);
  if (own && !own.contains(from)) within(own.closest("aside"), own);
}
document.addEventListener("mouseover", (event) => {
  const e = event.target.closest("[data-line]"); light(e ? e.dataset.line : null, event.target);
});
document.addEventListener("click", (event) => {
  const e = event.target.closest("[data-source]"); if (!e) return;
  kept = kept === e.dataset.line ? null : e.dataset.line; mark();
  if (kept) {
    const first = [...document.querySelectorAll(`main li[data-line="${kept}"]`)].find((x) => x.offsetParent);
    if (first) first.scrollIntoView({ block: "center", behavior: "smooth" });
  }
});

// --- search ------------------------------------------------------------------------------------------
const field = document.getElementById("search"), count = document.getElementById("hits");
let hits = [], at = -1, waiting = 0;
const MOST = 3000;
function clear() {
  hits = []; at = -1; count.textContent = "";
  if (CSS.highlights) { CSS.highlights.delete("hit"); CSS.highlights.delete("current"); }
}
async function search(query) {
  clear();
  if (query.length < 2) return;
  await unpackAll();
  const wanted = query.toLowerCase();
  for (const block of document.querySelectorAll("main li code, main pre, main .formula, summary.card code")) {
    const all = block.textContent.toLowerCase();
    if (!all.includes(wanted)) continue;
    const nodes = [], walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    let start = 0;
    while (walker.nextNode()) { nodes.push([start, walker.currentNode]); start += walker.currentNode.length; }
    let n = 0;
    for (let i = all.indexOf(wanted); i >= 0 && hits.length < MOST; i = all.indexOf(wanted, i + wanted.length)) {
      const range = document.createRange(), end = i + wanted.length;
      while (n + 1 < nodes.length && nodes[n + 1][0] <= i) n++;
      let last = n;
      while (last + 1 < nodes.length && nodes[last + 1][0] < end) last++;
      range.setStart(nodes[n][1], i - nodes[n][0]); range.setEnd(nodes[last][1], end - nodes[last][0]);
      hits.push(range);
    }
  }
  if (CSS.highlights) CSS.highlights.set("hit", new Highlight(...hits));
  count.textContent = hits.length ? `${hits.length}${hits.length === MOST ? "+" : ""} found` : "nothing found";
}
function step(by) {
  if (!hits.length) return;
  at = (at + by + hits.length) % hits.length;
  const range = hits[at];
  for (let e = range.startContainer.parentElement; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (CSS.highlights) CSS.highlights.set("current", new Highlight(range));
  const box = range.startContainer.parentElement;
  box.scrollIntoView({ block: "center" });
  count.textContent = `${at + 1} of ${hits.length}`;
}
field.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => search(field.value), 180); });
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); step(event.shiftKey ? -1 : 1); }
  if (event.key === "Escape") { field.value = ""; clear(); field.blur(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== field) { event.preventDefault(); field.focus(); }
});
