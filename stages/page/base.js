// What every page does: unpack the data, make elements from text, draw charts in the page's colours.
const byId = (id) => document.getElementById(id);

function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

async function unpack() {
  const bytes = Uint8Array.from(atob(byId("payload").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function chartConfig() {
  const [text, dim, line] = ["--text", "--dim", "--line"].map(colour);
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { labelColor: dim, titleColor: dim, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal" },
    legend: { labelColor: text, titleColor: dim, orient: "top", title: null, symbolOpacity: 1 },
    rule: { color: dim },
    point: { color: colour("--accent") },
    range: { category: [colour("--chosen"), colour("--rejected"), "#3f9d4f", "#a35fb5", "#8c6d4f", "#1aa6a6", "#d6458b", dim] },
  };
}

// Charts by their element, so that they can be drawn again in other colours.
const drawn = new Map();

async function draw(element, spec, onReady) {
  const old = drawn.get(element);
  if (old) old.view.finalize();
  // ast: expressions are interpreted, since the page may not make code from text.
  const result = await window.vegaEmbed(element, spec, { actions: false, renderer: "svg", ast: true, config: chartConfig() });
  drawn.set(element, { spec, onReady, view: result.view });
  if (onReady) await onReady(result.view);
  return result.view;
}

// `onReady(id, view)` is called for a figure whenever it was drawn.
async function drawFigures(container, figures, onReady) {
  for (const { id, title, caption, spec } of figures) {
    const figure = make("figure");
    const chart = make("div", null, { class: "chart", id });
    figure.append(make("h3", title), chart, make("figcaption", caption));
    container.append(figure);
    await draw(chart, spec, onReady && ((view) => onReady(id, view)));
  }
}

function isDark() {
  const set = document.documentElement.dataset.theme;
  return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

async function redraw() {
  for (const [element, { spec, onReady }] of [...drawn]) await draw(element, spec, onReady);
}

function toggleTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  redraw();
}

byId("theme").addEventListener("click", toggleTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

function fillFacts(list, facts) {
  for (const [name, value] of Object.entries(facts)) list.append(make("dt", name), make("dd", value));
}

// `main` is the page's own script. What goes wrong is said on the page, not in the console alone.
async function start(main) {
  try {
    await main(await unpack());
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    byId("problem").hidden = false;
    byId("problem").textContent = `This browser could not show the page: ${error}`;
    throw error;
  }
}
