// Script of the page on which suspect labels are reviewed: shows one suspect at a time and keeps the decisions.
"use strict";
const data = JSON.parse(document.getElementById("suspects").textContent), all = data.suspects;
const key = "label-review-" + data.list_sha256, at = id => document.getElementById(id);
const numberOf = new Map(data.categories.map((category, number) => [category.id, number]));
let decisions = {}, place = 0, corner = null;
try { decisions = JSON.parse(localStorage.getItem(key)) || {}; } catch (error) { decisions = {}; }
function nameOf(id) { return data.categories[numberOf.get(id)].name; }
function keep() {
  try { localStorage.setItem(key, JSON.stringify(decisions)); } catch (error) { /* the download remains */ }
  show();
}
function question(s) {
  const label = s.category_id === null ? "" : nameOf(s.category_id);
  const proposed = s.proposed_category_id === null ? "" : nameOf(s.proposed_category_id);
  return {missing: `Is a label of class ${proposed} missing here?`, class: `Is this ${label} of class ${proposed}?`,
    place: `Is the box of this ${label} in the wrong place?`, extra: `Is there no ${label} here?`}[s.kind];
}
function accepted(s) {
  return {missing: "Accept: add the label", class: "Accept: change the class", place: "Accept: move the box",
    extra: "Accept: remove the label"}[s.kind];
}
function box(kind, xywh) {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  rect.setAttribute("class", kind);
  ["x", "y", "width", "height"].forEach((name, index) => rect.setAttribute(name, xywh[index]));
  at("picture").append(rect);
}
function within([x, y, width, height], part) {
  const [left, top] = [Math.max(x, part[0]), Math.max(y, part[1])];
  const right = Math.min(x + width, part[0] + part[2]), bottom = Math.min(y + height, part[1] + part[3]);
  return right > left && bottom > top ? [left, top, right - left, bottom - top] : null;
}
function show() {
  const s = all[place], decision = decisions[s.id], picture = at("picture");
  const [x, y, width, height] = s.part_xywh;
  picture.setAttribute("viewBox", [x, y, width, height].join(" "));
  picture.replaceChildren();
  const image = document.createElementNS("http://www.w3.org/2000/svg", "image");
  const source = s.picture ? {href: s.picture, preserveAspectRatio: "none"} : {};
  for (const [name, value] of Object.entries({x, y, width, height, ...source})) image.setAttribute(name, value);
  picture.append(image);
  s.others.map(other => within(other, s.part_xywh)).filter(Boolean).forEach(other => box("other", other));
  if (s.bbox) box("label", s.bbox);
  if (s.proposed_bbox && s.kind !== "class") box("proposed", s.proposed_bbox);
  if (decision && decision.bbox) box("drawn", decision.bbox);
  at("question").textContent = question(s);
  at("file").textContent = s.file_name + (s.score === null ? "" : `, score of the detection ${s.score.toFixed(2)}`);
  at("accept-text").textContent = accepted(s);
  at("class").value = (decision && decision.category_id) ?? s.proposed_category_id ?? s.category_id;
  for (const word of ["accept", "reject", "redraw"])
    at(word).classList.toggle("chosen", Boolean(decision) && decision.decision === word);
  const num = Object.keys(decisions).length;
  at("progress").textContent = `${place + 1} of ${all.length}; ${num} decided`;
}
function go(step) { place = Math.min(Math.max(place + step, 0), all.length - 1); show(); }
function decide(word) { decisions[all[place].id] = {decision: word}; keep(); go(1); }
function redraw(bbox) {
  const s = all[place], old = decisions[s.id] || {};
  bbox = bbox || old.bbox || s.bbox || s.proposed_bbox;
  decisions[s.id] = {decision: "redraw", bbox, category_id: at("class").value};
  keep();
}
function undo() { delete decisions[all[place].id]; keep(); }
function decided() {
  const made = all.filter(s => decisions[s.id]).map(s => ({
    id: s.id, image_id: s.image_id, category_id: s.category_id, bbox: s.bbox, kind: s.kind,
    proposed_category_id: s.proposed_category_id, proposed_bbox: s.proposed_bbox, ...renamed(decisions[s.id])}));
  const content = JSON.stringify({format: data.format, version: data.version, annotations: data.annotations,
    annotations_sha256: data.annotations_sha256, decisions: made}, null, 1);
  return content.replace(/("\w*_id": )"(-?\d+)"/g, "$1$2");  // ids are strings here: a number has 53 bits
}
function renamed(decision) {
  const {decision: word, bbox, category_id} = decision;
  return word === "redraw" ? {decision: word, drawn_bbox: bbox, drawn_category_id: category_id} : {decision: word};
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([decided()], {type: "application/json"}));
  link.download = "decisions.json";
  link.click();
}
function pointOf(event) {
  const matrix = at("picture").getScreenCTM().inverse(), [x, y, width, height] = all[place].part_xywh;
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
  return [Math.min(Math.max(point.x, x), x + width), Math.min(Math.max(point.y, y), y + height)];
}
function drawnTo(event) {
  const [x, y] = pointOf(event), [left, top] = [Math.min(x, corner[0]), Math.min(y, corner[1])];
  return [left, top, Math.abs(x - corner[0]), Math.abs(y - corner[1])].map(value => Math.round(10 * value) / 10);
}
at("picture").addEventListener("pointerdown", event => { corner = pointOf(event); event.preventDefault(); });
at("picture").addEventListener("pointermove", event => {
  if (!corner) return;
  at("picture").querySelectorAll(".drawn").forEach(rect => rect.remove());
  box("drawn", drawnTo(event));
});
addEventListener("pointerup", event => {
  if (!corner) return;
  const bbox = drawnTo(event);
  corner = null;
  if (bbox[2] >= 1 && bbox[3] >= 1) redraw(bbox); else show();
});
data.categories.forEach(category => at("class").add(new Option(category.name, category.id)));
at("class").addEventListener("change", () => { redraw(); at("class").blur(); });
at("accept").addEventListener("click", () => decide("accept"));
at("reject").addEventListener("click", () => decide("reject"));
at("redraw").addEventListener("click", () => redraw());
at("undo").addEventListener("click", undo);
at("back").addEventListener("click", () => go(-1));
at("next").addEventListener("click", () => go(1));
at("save").addEventListener("click", save);
const KEYS = {a: () => decide("accept"), r: () => decide("reject"), d: () => redraw(), u: undo, s: save,
  ArrowLeft: () => go(-1), ArrowRight: () => go(1)};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const category = data.categories[Number(event.key) - 1];
  if (/^[1-9]$/.test(event.key) && category) { at("class").value = category.id; redraw(); }
  else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key](); else return;
  event.preventDefault();
});
show();
