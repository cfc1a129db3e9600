"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const details = document.getElementById("details");
const frame = document.getElementById("picture");
const picture = frame.querySelector("svg");

// Zoom and move.
const fit = Math.min(1, frame.clientWidth / picture.getAttribute("width"), frame.clientHeight / picture.getAttribute("height"));
const start = Math.max(fit, 0.6); // never so small that nothing can be read
const zoom = Panzoom(picture, { origin: "0 0", startScale: start, minScale: Math.min(fit, 0.2), maxScale: 8, cursor: "grab" });
document.getElementById("closer").onclick = () => zoom.zoomIn();
document.getElementById("farther").onclick = () => zoom.zoomOut();
document.getElementById("whole").onclick = () => { zoom.zoom(fit); zoom.pan(0, 0); };
frame.addEventListener("wheel", (event) => { if (event.ctrlKey || event.metaKey) zoom.zoomWithWheel(event); }, { passive: false });

// Details of the add that was clicked.
function element(tag, text, parent, name) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
}

function facts(site) {
  const what = { replaced: "the add is replaced by", read: "the branch reads through", mixer: "positions are mixed by",
    route: "projections read those of earlier layers by" };
  const rows = [["owner", site.owner], ["source", site.place], ["form", site.form], ["branch", site.kind],
    ["stream", `${site.stream}, add ${site.depth}` + (site.width ? `, width ${site.width}` : "")]];
  if (site.note) rows.push(["note", site.note]);
  for (const [kind, methods] of Object.entries(site.acting)) rows.push([what[kind], methods.join(" + ")]);
  return rows;
}

function show(name, index) {
  const alike = data.sites[name], site = alike[index];
  details.replaceChildren();
  element("h2", site.name, details);
  if (alike.length > 1) {
    const select = element("select", "", details);
    select.setAttribute("aria-label", "Block");
    alike.forEach((other, i) => { element("option", other.block || other.name, select).value = i; });
    select.value = index;
    select.onchange = () => show(name, Number(select.value));
  }
  const list = element("dl", "", details);
  for (const [term, text] of facts(site)) { element("dt", term, list); element("dd", text, list); }
  if (site.source.length) {
    const lines = element("pre", "", details, "source");
    for (const [number, text, here] of site.source) element(here ? "mark" : "span", `${number}  ${text}\n`, lines);
  }
  const parameters = Object.entries(site.parameters);
  if (parameters.length) {
    element("h3", "New parameters", details);
    const rows = element("table", "", details);
    for (const [parameter, shape] of parameters) {
      const row = element("tr", "", rows);
      element("td", parameter, row);
      element("td", shape.join(" x "), row);
    }
  }
  if (site.code) {
    const more = element("details", "", details);
    element("summary", "Generated code of " + site.runs, more);
    element("pre", site.code, more);
  }
}

let pressed = [0, 0];
frame.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
for (const group of picture.querySelectorAll(".site")) {
  const choose = () => {
    picture.querySelectorAll(".chosen").forEach((other) => other.classList.remove("chosen"));
    group.classList.add("chosen");
    show(group.dataset.site, 0);
  };
  group.setAttribute("tabindex", "0");
  group.setAttribute("role", "button");
  group.setAttribute("aria-label", group.dataset.site);
  group.addEventListener("click", (event) => {
    if (Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 5) choose();
  });
  group.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
}

// Charts, in the colours of the page.
function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), edge = style.getPropertyValue("--edge").trim();
  document.querySelectorAll(".chart").forEach((place, i) => {
    const { data: traces, layout } = data.charts[i];
    const axis = { gridcolor: edge, zerolinecolor: edge };
    Plotly.react(place, traces, {
      ...layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: ink, ...layout.font },
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    }, { responsive: true, displaylogo: false });
  });
}
if (data.charts.length) {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
