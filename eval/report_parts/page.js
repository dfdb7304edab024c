"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const [track, clip, metric, left, right] = ["track", "clip", "metric", "left", "right"].map(find);
  const chart = find("chart"), legend = find("legend"), range = find("divide");

  // Replaces a select's options, keeping the choice where it is still there, else taking `wanted`, else the first.
  function fill(select, values, wanted, text = (value) => value) {
    const before = values.includes(select.value) ? select.value : values.includes(wanted) ? wanted : values[0];
    select.replaceChildren(...values.map((value) => new Option(text(value), value)));
    if (before !== undefined) select.value = before;
  }

  // ---- curves ----------------------------------------------------------------------------------------------------
  const MARGIN = { left: 52, right: 12, top: 10, bottom: 34 }, HEIGHT = 280;

  function ticks(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
  }

  function limits(lines) {
    const values = Object.values(lines).flat().filter((value) => value !== null);
    if (!values.length) return null;
    const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return [low - room, high + room];
  }

  const look = (method) => {
    const index = data.methods.indexOf(method);
    return method === "reference" ? { colour: "var(--soft)", dash: "6 4" }
      : { colour: `var(--m${index % 8})`, dash: index >= 8 ? "8 3" : "none" };
  };

  function draw(at = null) {
    const shown = data.tracks[track.value][clip.value], lines = shown.columns[metric.value] ?? {};
    const { title, unit, digits } = data.columns[metric.value] ?? { title: "", unit: "", digits: 3 };
    const bounds = limits(lines);
    drawLegend(lines, digits, shown.step, at);
    if (!bounds) { chart.textContent = "No frame has a value."; return; }
    const width = Math.max(chart.clientWidth, 240), points = Math.ceil(shown.frames / shown.step);
    const x = (i) => MARGIN.left + (width - MARGIN.left - MARGIN.right) * (points > 1 ? i / (points - 1) : 0.5);
    const y = (v) => MARGIN.top + (HEIGHT - MARGIN.top - MARGIN.bottom) * (bounds[1] - v) / (bounds[1] - bounds[0]);
    const parts = [];
    const marks = ticks(...bounds, 5), gap = marks.length > 1 ? marks[1] - marks[0] : 1;
    const decimals = Math.min(8, Math.max(0, -Math.floor(Math.log10(gap) + 1e-9)));
    for (const v of marks) {
      parts.push(`<line class="grid" x1="${MARGIN.left}" x2="${width - MARGIN.right}" y1="${y(v)}" y2="${y(v)}"/>`,
        `<text x="${MARGIN.left - 6}" y="${y(v) + 4}" text-anchor="end">${v.toFixed(decimals)}</text>`);
    }
    for (const i of points > 1 ? ticks(0, points - 1, Math.min(points - 1, width / 70)).filter(Number.isInteger) : [0]) {
      parts.push(`<text x="${x(i)}" y="${HEIGHT - 18}" text-anchor="middle">${i * shown.step}</text>`);
    }
    parts.push(`<text x="${(width + MARGIN.left) / 2}" y="${HEIGHT - 3}" text-anchor="middle">frame</text>`);
    for (const frame of data.pictured[track.value]?.[clip.value] ?? []) {
      const i = frame / shown.step;
      parts.push(`<line class="shown" x1="${x(i)}" x2="${x(i)}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}"/>`);
    }
    for (const [method, values] of Object.entries(lines)) {
      const { colour, dash } = look(method);
      const known = values.map((v, i) => [i, v]).filter(([, v]) => v !== null);
      const path = known.map(([i, v]) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
      parts.push(`<polyline points="${path}" fill="none" style="stroke:${colour}" stroke-width="2" stroke-dasharray="${dash}"/>`);
      if (known.length <= 60) {
        for (const [i, v] of known) parts.push(`<circle cx="${x(i)}" cy="${y(v)}" r="2.5" style="fill:${colour}"/>`);
      }
    }
    if (at !== null) parts.push(`<line class="cursor" x1="${x(at)}" x2="${x(at)}" y1="${MARGIN.top}" y2="${HEIGHT - MARGIN.bottom}"/>`);
    chart.innerHTML = `<svg viewBox="0 0 ${width} ${HEIGHT}" height="${HEIGHT}" role="img">${parts.join("")}</svg>`;
    chart.firstChild.setAttribute("aria-label", `${title} ${unit} of each frame of ${clip.value}`);
    chart.pointAt = (px) => Math.round((px - MARGIN.left) / (width - MARGIN.left - MARGIN.right) * (points - 1));
    chart.points = points;
  }

  function drawLegend(lines, digits, step, at) {
    const items = Object.entries(lines).map(([method, values]) => {
      const item = document.createElement("span"), line = document.createElement("i");
      const { colour, dash } = look(method);
      line.style.borderColor = colour;
      line.classList.toggle("dashed", dash !== "none");
      const value = at === null ? "" : `: ${values[at]?.toFixed(digits) ?? "-"}`;
      item.append(line, method + value);
      return item;
    });
    if (at !== null) items.unshift(step > 1 ? `frames ${at * step} … ${(at + 1) * step - 1}` : `frame ${at}`);
    legend.replaceChildren(...items);
  }

  function hover(event) {
    if (!chart.pointAt || !chart.points) return;
    const at = chart.pointAt(event.clientX - chart.getBoundingClientRect().left);
    draw(Math.min(Math.max(at, 0), chart.points - 1));
  }

  // ---- pictures --------------------------------------------------------------------------------------------------
  const isShown = (block) => block.dataset.track === track.value && block.dataset.clip === clip.value;

  function showPictures() {
    for (const block of document.querySelectorAll("[data-track][data-clip]")) block.hidden = !isShown(block);
    const pictured = Object.keys(data.pictured[track.value] ?? {});
    for (const note of document.querySelectorAll(".unpictured")) {
      note.hidden = pictured.includes(clip.value);
      note.textContent = pictured.length ? `Not pictured: ${clip.value}. Of this track there are pictures of ${pictured.join(", ")}.`
        : "Of this track there are no pictures.";
    }
    const stage = [...document.querySelectorAll(".stage[data-clip]")].find(isShown);
    find("compare-controls").hidden = !stage;
    if (!stage) return;
    const labels = [...stage.querySelectorAll("img")].map((image) => image.dataset.label);
    const methods = labels.filter((label) => data.methods.includes(label));
    const order = [...methods, ...labels.filter((label) => !methods.includes(label))];
    fill(left, order, methods[0]);
    fill(right, order, methods.length > 1 ? methods.at(-1) : "reference");
    stage.append(range);
    compare();
  }

  function compare() {
    const stage = range.closest(".stage");
    if (!stage) return;
    for (const [side, select] of [["left", left], ["right", right]]) {
      for (const image of stage.querySelectorAll("img")) image.classList.toggle(side, image.dataset.label === select.value);
      stage.querySelector(`b.${side}`).textContent = select.value;
    }
    divide();
  }

  function divide() {
    range.closest(".stage")?.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${left.value} left of ${Math.round(range.value)} %, ${right.value} right of it`);
  }

  // ---- choices ---------------------------------------------------------------------------------------------------
  function chooseClip() {
    const drawn = data.tracks[track.value][clip.value].columns;
    fill(metric, Object.keys(drawn), data.leading[track.value], (name) => data.columns[name].title);
    showPictures();
    draw();
  }

  function chooseTrack() {
    const pictured = data.pictured[track.value] ?? {};
    fill(clip, Object.keys(data.tracks[track.value]), Object.keys(pictured)[0],
      (name) => pictured[name] ? name : `${name} (curves only)`);
    chooseClip();
  }

  fill(track, Object.keys(data.tracks), data.start);
  track.addEventListener("change", chooseTrack);
  clip.addEventListener("change", chooseClip);
  metric.addEventListener("change", () => draw());
  left.addEventListener("change", compare);
  right.addEventListener("change", compare);
  range.addEventListener("input", divide);
  chart.addEventListener("pointermove", hover);
  chart.addEventListener("pointerdown", hover);
  chart.addEventListener("pointerleave", () => draw());
  window.addEventListener("resize", () => draw());
  find("bar").hidden = false;
  chooseTrack();
})();
