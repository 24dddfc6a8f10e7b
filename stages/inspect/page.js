// The browser of a reward cache: f at a changing alpha, and pairs with their tokens coloured by reward.
const SIDES = ["chosen", "rejected"];
const SHAPES = {
  linear: (r) => r,
  sigmoid: (r) => Math.tanh(r / 2),
  "clipped-linear": (r) => Math.min(1, Math.max(-1, r)),
};
const NATS = 1000; // scores come in thousandths of a nat

const number = (value, digits = 3) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const signed = (value) => (value < 0 ? "" : "+") + number(value);
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;
const sum = (values) => values.reduce((a, b) => a + b, 0);

start(async (data) => {
  const settings = data.f;
  const hasRewards = data.reward_kind !== "none";

  function f(reward, side, alpha = settings.alpha) {
    const value = 1 + (side === "chosen" ? 1 : -1) * alpha * SHAPES[settings.shape](settings.beta_r * reward);
    return settings.clip === null ? value : Math.min(1 + settings.clip, Math.max(1 - settings.clip, value));
  }

  // Head

  fillFacts(byId("facts"), data.facts);
  byId("sample").textContent = `Statistics and figures from ${data.sample}.`;

  if (data.comparison) {
    byId("comparison").hidden = false;
    byId("comparison").textContent = data.comparison.text;
  }

  function addNumber(value, name) {
    const box = make("div");
    box.append(make("b", value), make("span", name));
    byId("numbers").append(box);
  }
  const found = data.statistics;
  if (hasRewards) {
    addNumber(`${percent(found.accuracy.share)} ± ${percent(found.accuracy.standard_error)}`, "accuracy of the guide, standard error");
    addNumber(signed(found.margins.mean), "mean margin of a pair, nats");
    for (const side of SIDES) addNumber(signed(found.rewards[side].mean), `mean reward of ${side} tokens, nats`);
    if (found.length_correlation !== null) addNumber(signed(found.length_correlation), "correlation of margin with chosen being longer");
    if (data.comparison) addNumber(percent(data.comparison.theirs.share), "accuracy of the other guide");
  } else {
    byId("guided").hidden = byId("bar").hidden = true;
    for (const side of SIDES) addNumber(number(found.ref_logps[side]), `mean log-probability of ${side} tokens, nats`);
    byId("sample").textContent += " The cache was scored without guidance: there are no rewards to show.";
  }

  // f

  let fView = null;
  const fSpec = {
    description: "Histogram of f", width: "container", height: 240, autosize: { type: "fit-x", contains: "padding", resize: true },
    data: { name: "bins", values: [] },
    mark: { type: "bar", opacity: 0.55, binSpacing: 0 },
    encoding: {
      x: { field: "from", type: "quantitative", bin: { binned: true }, title: "f", axis: { tickCount: 10 }, scale: { zero: false } },
      x2: { field: "to" },
      y: { field: "share", type: "quantitative", stack: null, title: "share of tokens", axis: { format: "%" } },
      color: { field: "side", type: "nominal", scale: { domain: SIDES } },
      tooltip: [{ field: "side" }, { field: "from", format: ".4~g" }, { field: "to", format: ".4~g" }, { field: "share", format: ".2%" }],
    },
  };

  function fBins(values) {
    const all = [...values.chosen, ...values.rejected].sort((a, b) => a - b);
    let [low, high] = [all[Math.floor(all.length * 0.005)], all[Math.ceil(all.length * 0.995) - 1]];
    if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
    const count = 60, width = (high - low) / count;
    return SIDES.flatMap((side) => {
      const shares = new Array(count).fill(0);
      for (const value of values[side]) {
        const bin = Math.floor((value - low) / width);
        if (bin >= 0 && bin <= count) shares[Math.min(bin, count - 1)] += 1 / values[side].length;
      }
      return shares.map((share, n) => ({ side, from: low + n * width, to: low + (n + 1) * width, share }));
    });
  }

  const fValues = () => Object.fromEntries(SIDES.map((side) => [side, data.grid[side].map((reward) => f(reward, side))]));

  async function showF() {
    const values = fValues();
    const parts = SIDES.map((side) => {
      const below = values[side].filter((value) => value < 0).length / values[side].length;
      return `${side} mean ${number(sum(values[side]) / values[side].length, 4)}, ${percent(below, 2)} below 0`;
    });
    byId("f-summary").textContent = `f: ${parts.join("; ")}`;
    if (fView) await fView.data("bins", fBins(values)).runAsync();
  }

  function setAlpha(alpha) {
    if (!(alpha >= 0) || !hasRewards) return;
    settings.alpha = Math.round(alpha * 1e6) / 1e6;
    if (settings.alpha > Number(byId("alpha").max)) byId("alpha").max = settings.alpha;
    byId("alpha").value = settings.alpha;
    byId("alpha-number").value = settings.alpha;
    showF();
    markNegative();
    if (tokenAt) showTip(tokenAt);
  }

  // Pairs

  const pairs = data.pairs.map((pair) => {
    const rewards = Object.fromEntries(SIDES.map((side) => [side, pair[side].r.map((value) => value / NATS)]));
    const all = [...rewards.chosen, ...rewards.rejected].map(Math.abs);
    const texts = Object.fromEntries(SIDES.map((side) => [side, pair[side].t.join("")]));
    return {
      ...pair, rewards, texts,
      margin: pair.chosen.sum - pair.rejected.sum,
      extreme: all.reduce((a, b) => Math.max(a, b), 0),
      full: all.sort((a, b) => a - b)[Math.floor(all.length * 0.95)] || 1,
      length: all.length,
      text: [pair.n, pair.id, pair.prompt, texts.chosen, texts.rejected].join("\n").toLowerCase(),
    };
  });
  const ORDERS = {
    number: (a, b) => a.n - b.n,
    wrong: (a, b) => a.margin - b.margin,
    margin: (a, b) => b.margin - a.margin,
    extreme: (a, b) => b.extreme - a.extreme,
    length: (a, b) => b.length - a.length,
  };
  const WHY = { random: "at random", accuracy: "where the guide is most wrong", margin: "with the largest margin", extreme: "with the most extreme tokens", named: "that were named" };
  function drawnHow() {
    if (pairs.length === data.of) return "All pairs.";
    const counts = Object.keys(WHY).map((why) => [pairs.filter((pair) => pair.why === why).length, WHY[why]]);
    const reasons = counts.filter(([count]) => count).map((reason) => reason.join(" ")).join(", ");
    return `${pairs.length.toLocaleString("en-US")} of ${data.of.toLocaleString("en-US")} pairs${reasons && ": "}${reasons}.`;
  }
  byId("drawn").textContent = drawnHow();

  let shown = [];
  let current = null;

  function list() {
    const words = byId("search").value.toLowerCase();
    const wanted = { all: () => true, right: (pair) => pair.margin > 0, wrong: (pair) => !(pair.margin > 0) }[byId("filter").value];
    shown = pairs.filter((pair) => wanted(pair) && pair.text.includes(words)).sort(ORDERS[byId("sort").value]);
    byId("found").textContent = `${shown.length} pairs`;
    byId("list").replaceChildren(...shown.map((pair) => {
      const item = make("li");
      item.append(make("b", `pair ${pair.n}`));
      if (hasRewards) item.append(make("span", signed(pair.margin), { class: pair.margin > 0 ? "m" : "m wrong" }));
      item.append(make("small", pair.texts.chosen.slice(0, 80)));
      item.addEventListener("click", () => select(pair));
      return item;
    }));
    if (!shown.includes(current)) select(shown[0] || null); else mark();
  }

  function mark() {
    [...byId("list").children].forEach((item, n) => item.setAttribute("aria-current", shown[n] === current));
    const item = byId("list").querySelector("[aria-current=true]");
    if (!item) return;
    const [list, top] = [byId("list"), item.offsetTop - byId("list").offsetTop];
    if (top < list.scrollTop || top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  }

  function select(pair) {
    current = pair;
    mark();
    hideTip();
    const article = byId("pair");
    if (!pair) return article.replaceChildren(make("p", "No pair is like that.", { class: "note" }));
    const prompt = make("div", pair.prompt, { class: "prompt", tabindex: "0", "aria-label": "prompt" });
    if (pair.cut) prompt.prepend(make("i", `(… ${pair.cut.toLocaleString("en-US")} characters)\n`));
    const sides = make("div", null, { class: "sides" });
    sides.append(...SIDES.map((side) => sideElement(pair, side)));
    const heading = `pair ${pair.n}, ${pair.id}, source row ${pair.row}` + (hasRewards ? `, margin ${signed(pair.margin)} nats` : "");
    article.replaceChildren(make("h3", heading), prompt, sides);
    prompt.scrollTop = prompt.scrollHeight;
    markNegative();
  }

  function sideElement(pair, side) {
    const section = make("section");
    const rewards = pair.rewards[side];
    const sums = hasRewards ? `  sum ${signed(pair[side].sum)}, mean ${signed(pair[side].sum / rewards.length)},` : "";
    section.append(make("h4", `${side} ${sums} ${rewards.length} tokens`));
    const response = make("div", null, { class: "response" });
    pair[side].t.forEach((text, n) => {
      const strength = Math.min(1, Math.abs(rewards[n]) / pair.full);
      const token = make("span", text || "·");
      token.dataset.side = side;
      token.dataset.n = n;
      if (strength >= 0.05) token.style.backgroundColor = `rgba(${colour(rewards[n] > 0 ? "--liked" : "--disliked")}, ${0.1 + 0.6 * strength})`;
      if (rewards[n] < 0 && strength >= 0.3) token.className = "down";
      response.append(token);
    });
    section.append(response);
    return section;
  }

  function markNegative() {
    for (const token of document.querySelectorAll(".response span")) {
      const { side, n } = token.dataset;
      token.classList.toggle("negative", hasRewards && f(current.rewards[side][n], side) < 0);
    }
  }

  // One token

  let tokenAt = null;

  function showTip(token) {
    if (tokenAt) tokenAt.classList.remove("at");
    tokenAt = token;
    token.classList.add("at");
    const { side } = token.dataset, n = Number(token.dataset.n), reward = current.rewards[side][n], logp = current[side].l[n] / NATS;
    const rows = [["token", `${n + 1} of ${current[side].i.length}, id ${current[side].i[n]}`], ["reference log-prob", number(logp)]];
    if (data.reward_kind === "log-ratio") rows.push(["guide log-prob", number(logp + reward)]);
    if (hasRewards) rows.push(["reward", signed(reward)], [`f at alpha ${settings.alpha}`, number(f(reward, side), 4)]);
    const table = make("table");
    for (const [name, value] of rows) {
      const row = make("tr");
      row.append(make("td", name), make("td", value));
      table.append(row);
    }
    const tip = byId("tip");
    tip.replaceChildren(make("b", current[side].t[n] || "(part of a character)"), table);
    tip.hidden = false;
    const box = token.getBoundingClientRect();
    const top = box.bottom + 8 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 8 : box.bottom + 8;
    tip.style.top = `${Math.max(4, top)}px`;
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  }

  function hideTip() {
    byId("tip").hidden = true;
    if (tokenAt) tokenAt.classList.remove("at");
    tokenAt = null;
  }

  byId("pair").addEventListener("mouseover", (event) => {
    const token = event.target.closest(".response span");
    if (token) showTip(token); else hideTip();
  });
  byId("pair").addEventListener("mouseleave", hideTip);
  addEventListener("wheel", hideTip, { passive: true });

  // Keys

  function step(by) {
    const next = shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(current) + by))];
    if (next && next !== current) select(next);
  }

  function stepToken(by) {
    const tokens = [...document.querySelectorAll(".response span")];
    const next = tokens[tokenAt ? tokens.indexOf(tokenAt) + by : by > 0 ? 0 : tokens.length - 1];
    if (!next) return;
    next.scrollIntoView({ block: "nearest" });
    showTip(next);
  }

  const KEYS = {
    j: () => step(1), k: () => step(-1), ArrowRight: () => stepToken(1), ArrowLeft: () => stepToken(-1),
    "/": () => byId("search").focus(), t: toggleTheme, Escape: hideTip,
    "[": () => setAlpha(Math.max(0, settings.alpha - 0.05)), "]": () => setAlpha(settings.alpha + 0.05),
  };
  const LIST_KEYS = { ArrowDown: () => step(1), ArrowUp: () => step(-1) };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (typing && event.key === "Escape") event.target.blur();
    if (typing && (event.key !== "Escape")) return;
    const action = KEYS[event.key] || (event.target === byId("list") && LIST_KEYS[event.key]);
    if (!action) return;
    event.preventDefault();
    action();
  });
  for (const name of ["search", "filter"]) byId(name).addEventListener("input", list);
  byId("sort").addEventListener("input", () => { list(); select(shown[0] || null); });
  byId("alpha").max = Math.max(2, 4 * settings.alpha);
  byId("alpha").addEventListener("input", (event) => setAlpha(Number(event.target.value)));
  byId("alpha-number").addEventListener("input", (event) => setAlpha(event.target.valueAsNumber));

  list();
  if (hasRewards) {
    fSpec.data.values = fBins(fValues());
    await draw(byId("f-chart"), fSpec, async (view) => { fView = view; await showF(); });
    setAlpha(settings.alpha);
    await drawFigures(byId("figures"), data.figures);
  }
});
