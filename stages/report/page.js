// Curves of runs: by step or epoch, smoothed as far as one likes.
start(async (data) => {
  const row = (cells, kind) => {
    const element = make("tr");
    element.append(...cells.map((cell) => make(kind, cell)));
    return element;
  };
  const table = byId("table");
  table.append(row(["", ...data.runs.map((run) => run.name + (run.finished ? "" : " (not finished)"))], "th"));
  for (const part of [data.settings, data.metrics]) {
    Object.entries(part).forEach(([name, values], n) => {
      const element = row([name, ...values], "td");
      if (n === 0) element.className = "group";
      table.append(element);
    });
  }

  // Of training, an exponential moving average, corrected for its start at zero; held-out values stay what they are.
  function shaped(points) {
    const [x, smoothing] = [byId("x").value, Number(byId("smoothing").value)];
    const means = new Map();
    return points.map((point) => {
      const weight = point.of === "training" ? smoothing : 0;
      const key = JSON.stringify([point.run, point.of]);
      const { mean, mass } = means.get(key) || { mean: 0, mass: 0 };
      const next = { mean: weight * mean + (1 - weight) * point.value, mass: weight * mass + (1 - weight) };
      means.set(key, next);
      return { ...point, x: point[x], shown: next.mean / next.mass };
    });
  }

  const byName = new Map(data.figures.map((figure) => [figure.id, figure]));
  for (const figure of data.figures) figure.spec.data.values = shaped(figure.points);
  const views = new Map();
  const show = (id) => views.get(id).data("points", shaped(byName.get(id).points)).runAsync();
  for (const control of ["x", "smoothing"]) {
    byId(control).addEventListener("input", () => {
      byId("smoothing-shown").textContent = byId("smoothing").value;
      for (const id of views.keys()) show(id);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) toggleTheme();
  });
  await drawFigures(byId("figures"), data.figures, async (id, view) => { views.set(id, view); await show(id); });
});
