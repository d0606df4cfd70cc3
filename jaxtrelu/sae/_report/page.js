"use strict";
(() => {
  const began = performance.now();
  const byId = (id) => document.getElementById(id);
  const about = JSON.parse(byId("about").textContent);

  // --- the figures, as typed arrays over one block of bytes ---

  const KINDS = {
    float32: Float32Array, float64: Float64Array, int32: Int32Array,
    uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array,
  };
  const text = byId("bytes").textContent;
  byId("bytes").textContent = "";
  let bytes;
  if (Uint8Array.fromBase64) {
    bytes = Uint8Array.fromBase64(text);
  } else {
    const plain = atob(text);
    bytes = new Uint8Array(plain.length);
    for (let i = 0; i < plain.length; i++) bytes[i] = plain.charCodeAt(i);
  }
  const data = {};
  for (const [name, [kind, place, size]] of Object.entries(about.arrays)) {
    data[name] = new KINDS[kind](bytes.buffer, bytes.byteOffset + place, size);
  }
  const m = about.features;
  const bins = data.histogram.length / m;
  const tops = data.topRows.length / m;
  const nears = data.near.length / m;
  const dead = Array.from(data.density).filter((d) => d === 0).length;

  // --- small things ---

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);  // text stays text, whatever is in it
    return element;
  };
  const grouped = (n) => Math.round(n).toLocaleString("en");
  const figure = (v, digits = 4) => {
    if (v === null || v === undefined || Number.isNaN(v)) return "–";
    if (v === 0) return "0";
    const size = Math.abs(v);
    if (size >= 1e6 || size < 1e-4) return v.toExponential(2).replace("-", "−");
    if (Number.isInteger(v)) return grouped(v).replace("-", "−");
    return String(Number(v.toPrecision(digits))).replace("-", "−");
  };
  // With the same number of digits in every line of a list.
  const even = (v, digits) => {
    const size = Math.abs(v);
    if (!(size >= 1e-3 && size < 1e5)) return figure(v, digits);
    return v.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))).replace("-", "−");
  };
  const percent = (v) => (v === 0 ? "0" : even(100 * v, 3)) + " %";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // A canvas of the element's size in the screen's pixels, with its context in CSS pixels.
  const prepared = (canvas) => {
    const box = canvas.getBoundingClientRect();
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(box.width * scale));
    canvas.height = Math.max(1, Math.round(box.height * scale));
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
    pen.lineJoin = "round";
    return [pen, box.width, box.height];
  };
  const niceTicks = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
    const ticks = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) {
      ticks.push(Math.abs(t) < step * 1e-9 ? 0 : t);
    }
    return ticks;
  };

  // Axes with ticks at given places: returns the two functions from values to pixels.
  const axes = (pen, box, x, y) => {
    const [left, top, right, bottom] = box;
    const toX = (v) => left + ((v - x.low) / (x.high - x.low || 1)) * (right - left);
    const toY = (v) => bottom - ((v - y.low) / (y.high - y.low || 1)) * (bottom - top);
    pen.lineWidth = 1;
    pen.fillStyle = colour("soft");
    pen.strokeStyle = colour("line");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const [value, name] of y.ticks) {
      const place = Math.round(toY(value)) + 0.5;
      pen.beginPath(); pen.moveTo(left, place); pen.lineTo(right, place); pen.stroke();
      pen.fillText(name, left - 5, place);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const [value, name] of x.ticks) {
      const place = Math.round(toX(value)) + 0.5;
      pen.beginPath(); pen.moveTo(place, bottom); pen.lineTo(place, bottom + 3); pen.stroke();
      pen.fillText(name, Math.min(place, right - pen.measureText(name).width / 2 + 8), bottom + 5);
    }
    pen.beginPath(); pen.moveTo(left, bottom + 0.5); pen.lineTo(right, bottom + 0.5); pen.stroke();
    return [toX, toY];
  };
  const linear = (low, high, count = 4) => ({
    low, high, ticks: niceTicks(low, high, count).map((t) => [t, figure(t)]),
  });

  // --- the table of figures ---

  const WORDS = {
    rows: ["rows", "that were looked at"],
    explained_variance: ["explained variance", "1: nothing is lost"],
    mean_squared_error: ["mean squared error", "per row"],
    cosine_similarity: ["cosine similarity", "of row and reconstruction"],
    norm_in: ["norm in", "mean of the rows’"],
    norm_out: ["norm out", "mean of the reconstructions’"],
    norm_ratio: ["norm ratio", "out to in"],
    relative_reconstruction_bias: ["reconstruction bias", "below 1: shrinks"],
    l0: ["L0", "open features per row"],
    l1: ["L1", "sum of a row’s features"],
    over_1_percent: ["open in over 1 %", "share of features; of the rows"],
    over_10_percent: ["open in over 10 %", "share of features; of the rows"],
    alive_share: ["alive", "share of features open in a row at least"],
  };
  if (about.outputs) {
    WORDS.cosine_similarity[1] = "of target and output";
    WORDS.norm_in[1] = "mean of the targets’";
    WORDS.norm_out[1] = "mean of the outputs’";
  }
  const SHARES = new Set(["over_1_percent", "over_10_percent", "alive_share"]);

  const showOverview = () => {
    byId("title").textContent = about.title;
    const trained = about.trained;
    const parts = [`${grouped(m)} features of dimension ${grouped(about.dimension)}`];
    if (about.outputs) parts[0] += ` to ${grouped(about.outputs)}`;
    if (about.skip) parts.push("with a skip connection");
    if (about.recipe) parts.push(`recipe ${about.recipe}`);
    if (trained.steps) parts.push(`${grouped(trained.steps)} steps`);
    if (trained.target_l0) parts.push(`L0 of ${figure(trained.target_l0)} asked for`);
    if (trained.seed !== undefined) parts.push(`seed ${trained.seed}`);
    byId("subtitle").textContent = parts.join(" · ");
    byId("judged").textContent = `Of ${about.judged}; features below are of ` +
      (about.looked < about.rows ? `${grouped(about.looked)} of ` : "all ") + `${grouped(about.rows)} rows.`;
    const body = byId("figures").querySelector("tbody");
    for (const [name, value] of about.metrics) {
      const [word, what] = WORDS[name] || [name, ""];
      const shown = SHARES.has(name) ? percent(value) : figure(value, 4);
      body.append(make("tr", {}, make("td", { textContent: word }),
        make("td", { textContent: shown, className: "number" }), make("td", { textContent: what })));
    }
    byId("deadnote").textContent = dead ? `Those at the left edge, ${grouped(dead)} of ${grouped(m)}, are never open.` : "";
  };

  // --- curves of the training ---

  const curves = [];
  const prepareCurves = () => {
    const history = about.history;
    if (!history) return;
    byId("training").hidden = false;
    const target = about.trained.target_l0;
    const has = (name) => history[name] !== undefined;
    const wanted = [];
    if (has("l0")) wanted.push({ title: "L0: open features per row" + (target ? ` (dashed: ${figure(target)} asked for)` : ""), lines: ["l0"], mark: target });
    if (has("reconstruction")) wanted.push({ title: "variance lost, per cent", lines: ["reconstruction"], factor: 100 });
    if (has("coefficient")) wanted.push({ title: "the coefficient λ", lines: ["coefficient"] });
    if (has("threshold_50")) wanted.push({ title: "thresholds: median, middle half, 5 to 95 per cent", lines: ["threshold_50"], bands: [["threshold_05", "threshold_95"], ["threshold_25", "threshold_75"]].filter(([a]) => has(a)) });
    const place = byId("training").querySelector(".curves");
    for (const one of wanted) {
      const canvas = make("canvas");
      canvas.setAttribute("role", "img");
      const last = history[one.lines[0]].at(-1);
      canvas.setAttribute("aria-label", `${one.title}; at the end ${figure(last === null ? NaN : last * (one.factor || 1))}`);
      place.append(make("figure", {}, make("figcaption", { textContent: one.title }), canvas));
      curves.push([canvas, one]);
    }
  };
  const drawCurves = () => {
    for (const [canvas, one] of curves) {
      const [pen, width, height] = prepared(canvas);
      const factor = one.factor || 1;
      const of = (name) => about.history[name].map((v) => (v === null ? NaN : v * factor));
      const steps = about.history.step;
      const all = [...one.lines, ...(one.bands || []).flat()].flatMap(of).filter(Number.isFinite);
      if (one.mark) all.push(one.mark);
      const high = Math.max(...all, 1e-12) * 1.04;
      const x = { ...linear(0, steps.at(-1), 4) };
      const [toX, toY] = axes(pen, [46, 6, width - 8, height - 20], x, linear(Math.min(0, ...all), high, 3));
      pen.fillStyle = colour("blue");
      (one.bands || []).forEach(([low, up], i) => {
        const a = of(low), b = of(up);
        pen.globalAlpha = 0.18 + 0.14 * i;
        pen.beginPath();
        steps.forEach((s, k) => pen.lineTo(toX(s), toY(b[k])));
        for (let k = steps.length - 1; k >= 0; k--) pen.lineTo(toX(steps[k]), toY(a[k]));
        pen.fill();
      });
      pen.globalAlpha = 1;
      if (one.mark) {
        pen.strokeStyle = colour("orange");
        pen.setLineDash([5, 4]);
        pen.beginPath(); pen.moveTo(toX(0), toY(one.mark)); pen.lineTo(width - 8, toY(one.mark)); pen.stroke();
        pen.setLineDash([]);
      }
      pen.strokeStyle = colour("blue");
      pen.lineWidth = 1.8;
      for (const name of one.lines) {
        pen.beginPath();
        let down = false;
        of(name).forEach((v, k) => {
          if (!Number.isFinite(v)) { down = false; return; }
          if (down) pen.lineTo(toX(steps[k]), toY(v)); else pen.moveTo(toX(steps[k]), toY(v));
          down = true;
        });
        pen.stroke();
      }
    }
  };

  // --- thresholds against density ---

  let scatter = null;
  const drawScatter = () => {
    const canvas = byId("scattercanvas");
    const [pen, width, height] = prepared(canvas);
    const open = Array.from(data.density).filter((d) => d > 0);
    const lowest = Math.floor(Math.log10(open.reduce((a, b) => Math.min(a, b), 1)));
    const decades = Array.from({ length: 1 - lowest }, (_, i) => lowest + i);
    const edge = lowest - (dead ? 0.6 : 0.05);
    let least = Infinity, most = -Infinity;
    for (const t of data.threshold) { least = Math.min(least, t); most = Math.max(most, t); }
    const pad = (most - least) * 0.05 || Math.abs(most) * 0.1 || 1;
    const x = { low: edge, high: 0.05, ticks: decades.map((d) => [d, figure(100 * 10 ** d) + " %"]) };
    if (dead) x.ticks.unshift([edge + 0.2, "never"]);
    const [toX, toY] = axes(pen, [58, 8, width - 10, height - 36], x, linear(Math.max(least - pad, least >= 0 ? 0 : -Infinity), most + pad, 5));
    pen.fillStyle = colour("soft");
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    pen.fillText("open in … of the rows", (58 + width - 10) / 2, height - 2);
    pen.save();
    pen.translate(11, (height - 28) / 2); pen.rotate(-Math.PI / 2);
    pen.textBaseline = "middle";
    pen.fillText("threshold", 0, 0);
    pen.restore();
    const places = new Float32Array(2 * m);
    const radius = m > 3000 ? 1.3 : m > 600 ? 1.9 : 2.6;
    pen.globalAlpha = m > 3000 ? 0.45 : 0.65;
    for (const [never, shade] of [[true, "grey"], [false, "blue"]]) {
      pen.fillStyle = colour(shade);
      pen.beginPath();
      for (let i = 0; i < m; i++) {
        if ((data.density[i] === 0) !== never) continue;
        const px = toX(never ? edge + 0.2 : Math.log10(data.density[i]));
        const py = toY(data.threshold[i]);
        places[2 * i] = px; places[2 * i + 1] = py;
        if (m > 3000) {  // many arcs take long
          pen.fillRect(px - radius, py - radius, 2 * radius, 2 * radius);
        } else {
          pen.moveTo(px + radius, py);
          pen.arc(px, py, radius, 0, 7);
        }
      }
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (chosen >= 0) {
      pen.strokeStyle = colour("orange");
      pen.lineWidth = 2.5;
      pen.beginPath(); pen.arc(places[2 * chosen], places[2 * chosen + 1], 6, 0, 7); pen.stroke();
    }
    scatter = places;
    canvas.setAttribute("aria-label", `Thresholds from ${figure(least)} to ${figure(most)} against the share of rows in which each of ${grouped(m)} features is open`);
  };
  byId("scattercanvas").addEventListener("click", (event) => {
    let best = -1, least = 20 ** 2;
    for (let i = 0; i < m; i++) {
      const distance = (scatter[2 * i] - event.offsetX) ** 2 + (scatter[2 * i + 1] - event.offsetY) ** 2;
      if (distance < least) { least = distance; best = i; }
    }
    if (best >= 0) choose(best, true);
  });

  // --- the list ---

  const COLUMNS = [
    ["feature", null, (i) => grouped(i), "its number, from 0"],
    ["open", data.density, (i) => percent(data.density[i]), "share of the rows in which it is open"],
    ["threshold", data.threshold, (i) => even(data.threshold[i], 4), "in the units of pre-activations"],
    ["mean", data.mean, (i) => even(data.mean[i], 3), "of its value where it is open"],
    ["largest", data.largest, (i) => even(data.largest[i], 3), "of its values"],
    ["nearest", data.nearest, (i) => even(data.nearest[i], 3), "largest cosine to another decoder row"],
  ];
  const ROW = 24;
  const scroller = byId("scroller");
  const body = byId("table").querySelector("tbody");
  let sorted = { column: 1, down: true };
  let order = new Uint32Array(0);
  let chosen = -1;

  const listHeads = () => {
    const row = byId("table").querySelector("thead tr");
    COLUMNS.forEach(([name, , , what], column) => {
      const button = make("button", { type: "button", title: what });
      button.addEventListener("click", () => {
        sorted = { column, down: sorted.column === column ? !sorted.down : column > 0 };
        refill();
      });
      const head = make("th", { scope: "col" }, button);
      head.dataset.name = name;
      row.append(head);
    });
  };
  const refill = () => {
    const wantedNumber = byId("number").value.trim();
    const which = byId("which").value;
    const share = (id, other) => (byId(id).value === "" ? other : Number(byId(id).value) / 100);
    const least = share("least", -1), most = share("most", 2);
    const word = about.labels ? byId("word").value.trim().toLowerCase() : "";
    const matching = word ? about.labels.map((label) => label.toLowerCase().includes(word)) : null;
    const found = [];
    for (let i = 0; i < m; i++) {
      const density = data.density[i];
      if (wantedNumber !== "" && String(i) !== wantedNumber) continue;
      if (which === "living" && density === 0) continue;
      if (which === "dead" && density !== 0) continue;
      if (density < least || density > most) continue;
      if (which === "shown" && data.topPlaces[i * tops] < 0) continue;
      if (matching) {
        let has = false;
        for (let k = 0; k < tops && !has; k++) {
          const place = data.topPlaces[i * tops + k];
          has = place >= 0 && matching[place];
        }
        if (!has) continue;
      }
      found.push(i);
    }
    const values = COLUMNS[sorted.column][1];
    const sign = sorted.down ? -1 : 1;
    if (values) {
      // What is no number comes last either way; equal values stay in the order of their numbers.
      found.sort((a, b) => {
        const u = values[a], v = values[b];
        if (Number.isNaN(u) || Number.isNaN(v)) return Number.isNaN(u) - Number.isNaN(v) || a - b;
        return sign * (u - v) || a - b;
      });
    } else if (sorted.down) found.reverse();
    order = Uint32Array.from(found);
    byId("table").querySelectorAll("th").forEach((head, column) => {
      const here = column === sorted.column;
      head.setAttribute("aria-sort", here ? (sorted.down ? "descending" : "ascending") : "none");
      head.firstChild.textContent = COLUMNS[column][0] + (here ? (sorted.down ? " ▼" : " ▲") : "");
    });
    byId("table").setAttribute("aria-rowcount", order.length + 1);
    byId("count").textContent = order.length === m ? `${grouped(m)} features` : `${grouped(order.length)} of ${grouped(m)}`;
    scroller.scrollTop = 0;
    fill();
  };
  // Only the rows in view exist; two empty ones keep the height of the others.
  const fill = () => {
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - 8);
    const last = Math.min(order.length, first + Math.ceil((scroller.clientHeight || 620) / ROW) + 16);
    const space = (rows) => {
      const row = make("tr", { className: "space" }, make("td", { colSpan: COLUMNS.length }));
      row.style.height = `${rows * ROW}px`;
      row.setAttribute("aria-hidden", "true");
      return row;
    };
    const rows = [space(first)];
    for (let k = first; k < last; k++) {
      const i = order[k];
      const row = make("tr", {}, ...COLUMNS.map(([, , shown]) => make("td", { textContent: shown(i), className: "number" })));
      row.dataset.feature = i;
      row.setAttribute("aria-rowindex", k + 2);
      row.setAttribute("aria-selected", String(i === chosen));
      rows.push(row);
    }
    rows.push(space(order.length - last));
    body.replaceChildren(...rows);
  };
  scroller.addEventListener("scroll", () => requestAnimationFrame(fill));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-feature]");
    if (row) choose(Number(row.dataset.feature));
  });
  scroller.addEventListener("keydown", (event) => {
    const page = Math.floor(scroller.clientHeight / ROW) - 2;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.target !== scroller || !(event.key in moves) || !order.length) return;
    event.preventDefault();
    const now = order.indexOf(chosen);
    choose(order[Math.max(0, Math.min(order.length - 1, now + moves[event.key]))], true);
  });
  byId("filters").addEventListener("input", refill);
  byId("filters").addEventListener("reset", () => setTimeout(refill));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());

  // --- one feature ---

  // A picture of one row, enlarged by a whole number.
  const picture = (values, offset, name, side) => {
    const [height, width, channels] = about.image;
    const small = new ImageData(width, height);
    for (let p = 0; p < width * height; p++) {
      for (let c = 0; c < 3; c++) small.data[4 * p + c] = values[offset + p * channels + (channels === 3 ? c : 0)];
      small.data[4 * p + 3] = 255;
    }
    const canvas = make("canvas", { width, height });
    canvas.getContext("2d").putImageData(small, 0, 0);
    const factor = Math.max(1, Math.floor(side / Math.max(width, height))) || 1;
    const shrink = Math.min(1, side / Math.max(width, height));
    canvas.style.width = `${width * (factor > 1 ? factor : shrink)}px`;
    canvas.style.height = `${height * (factor > 1 ? factor : shrink)}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    return canvas;
  };
  const pixels = about.image ? about.image[0] * about.image[1] * about.image[2] : 0;
  const hasAtoms = pixels > 0 && data.atoms && data.atoms.length > 0;

  const choose = (i, scroll = false) => {
    chosen = i;
    if (scroll) {
      const place = order.indexOf(i) * ROW;
      if (place >= 0 && (place < scroller.scrollTop || place > scroller.scrollTop + scroller.clientHeight - 3 * ROW)) {
        scroller.scrollTop = Math.max(0, place - scroller.clientHeight / 2);
      }
    }
    fill();
    showFeature(i);
    drawScatter();
    history.replaceState(null, "", `#${i}`);
  };

  const showFeature = (i) => {
    const panel = byId("detail");
    const facts = make("dl");
    for (const [name, value] of [
      ["open in", `${percent(data.density[i])} of ${grouped(about.looked)} rows`],
      ["threshold θ", figure(data.threshold[i])],
      ["mean where open", figure(data.mean[i])],
      ["largest", figure(data.largest[i])],
      ["encoder bias", figure(data.bias[i])],
      ["encoder · decoder", `cosine ${figure(data.cosine[i], 3)}`],
    ]) facts.append(make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value })));
    const head = make("div", { id: "head" });
    if (hasAtoms) head.append(picture(data.atoms, i * pixels, `decoder row of feature ${i}`, 96));
    head.append(make("div", {}, make("h2", { textContent: `Feature ${grouped(i)}` }), facts));
    const histogram = make("canvas", { id: "histogram" });
    histogram.setAttribute("role", "img");
    histogram.setAttribute("aria-label", `Histogram of pre-activations from ${figure(data.low[i])} to ${figure(data.high[i])}, threshold at ${figure(data.threshold[i])}`);
    panel.replaceChildren(
      head, make("h3", { textContent: "Pre-activations: rows, on a logarithmic scale" }), histogram,
      make("h3", { textContent: "Rows in which it is largest" }), topRows(i),
      make("h3", { textContent: "Nearest decoder rows" }), neighbours(i),
    );
    drawHistogram();
  };
  const drawHistogram = () => {
    const canvas = byId("histogram");
    if (!canvas || chosen < 0) return;
    const i = chosen;
    const [pen, width, height] = prepared(canvas);
    const counts = data.histogram.subarray(i * bins, (i + 1) * bins);
    const theta = data.threshold[i];
    const low = Math.min(data.low[i], theta), up = Math.max(data.high[i], theta);
    const pad = (up - low) * 0.02 || 1;
    const top = Math.max(...counts, 1);
    const ticks = [];
    for (let power = 1; power <= top; power *= 10) ticks.push([Math.log10(1 + power), grouped(power)]);
    const y = { low: 0, high: Math.log10(1 + top) * 1.12, ticks };
    const [toX, toY] = axes(pen, [52, 6, width - 8, height - 20], linear(low - pad, up + pad, 6), y);
    const bottom = toY(0), cut = toX(theta);
    const size = (data.high[i] - data.low[i]) / bins;
    for (const [shade, from, to] of [["grey", 0, cut], ["blue", cut, width]]) {
      pen.save();
      pen.beginPath(); pen.rect(from, 0, to - from, height); pen.clip();
      pen.fillStyle = colour(shade);
      counts.forEach((count, k) => {
        if (!count) return;
        const a = toX(data.low[i] + k * size);
        const b = size ? toX(data.low[i] + (k + 1) * size) : a + 3;
        const h = toY(Math.log10(1 + count));
        pen.fillRect(a, h, Math.max(1, b - a - 0.6), bottom - h);
      });
      pen.restore();
    }
    pen.strokeStyle = colour("orange");
    pen.fillStyle = colour("orange");
    pen.lineWidth = 2;
    pen.beginPath(); pen.moveTo(cut, 4); pen.lineTo(cut, bottom); pen.stroke();
    const label = `θ = ${figure(theta)}`;
    const room = cut + 10 + pen.measureText(label).width < width;
    pen.textAlign = room ? "left" : "right";
    pen.textBaseline = "top";
    pen.fillText(label, cut + (room ? 6 : -6), 5);
  };
  const topRows = (i) => {
    const found = [];
    for (let k = 0; k < tops && data.topRows[i * tops + k] >= 0; k++) {
      found.push([data.topRows[i * tops + k], data.topValues[i * tops + k], data.topPlaces[i * tops + k]]);
    }
    if (!found.length) return make("p", { className: "note", textContent: "It is open in none of the rows." });
    if (about.image) {
      const tiles = make("div", { className: "tiles", id: "toprows" });
      let left = 0;
      for (const [row, value, place] of found) {
        if (place < 0) { left += 1; continue; }
        const name = about.labels ? about.labels[place] : `row ${grouped(row)}`;
        tiles.append(make("div", { className: "tile", title: name }, picture(data.images, place * pixels, name, 72),
          make("div", { textContent: figure(value, 3) })));
      }
      if (left) tiles.append(make("p", { className: "note", textContent: `${left} more have no place in this file.` }));
      return tiles;
    }
    const table = make("table", { id: "toprows" });
    const several = data.entries ? data.entries.length / data.kept.length : 0;
    table.append(make("thead", {}, make("tr", {},
      make("th", { scope: "col", textContent: "row", className: "number" }),
      make("th", { scope: "col", textContent: "value", className: "number" }),
      make("th", { scope: "col", textContent: about.labels ? "label" : "its largest entries, by column" }))));
    const rows = make("tbody");
    for (const [row, value, place] of found) {
      const content = make("td");
      if (about.labels) {
        content.textContent = place >= 0 ? about.labels[place] : "";
      } else if (place >= 0) {
        const entries = [];
        for (let k = 0; k < several; k++) {
          const at = place * several + k;
          entries.push(`${data.entries[at]}: ${figure(data.entryValues[at], 3)}`);
        }
        content.append(make("code", { textContent: entries.join("   ") }));
      }
      rows.append(make("tr", {}, make("td", { textContent: grouped(row), className: "number" }),
        make("td", { textContent: figure(value), className: "number" }), content));
    }
    table.append(rows);
    return table;
  };
  const neighbours = (i) => {
    const tiles = make("div", { className: "tiles", id: "near" });
    for (let k = 0; k < nears; k++) {
      const other = data.near[i * nears + k];
      const button = make("button", { type: "button", className: "tile near" });
      if (hasAtoms) button.append(picture(data.atoms, other * pixels, "", 60));
      button.append(make("div", { textContent: `feature ${grouped(other)}` }),
        make("div", { textContent: figure(data.nearCosines[i * nears + k], 3) }));
      button.addEventListener("click", () => choose(other, true));
      tiles.append(button);
    }
    return nears ? tiles : make("p", { className: "note", textContent: "There is no other." });
  };

  // --- all of it ---

  const draw = () => { drawCurves(); drawScatter(); drawHistogram(); };
  showOverview();
  prepareCurves();
  listHeads();
  byId("labelfilter").hidden = !about.labels;
  refill();
  const asked = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : -1;
  drawCurves();
  choose(asked >= 0 && asked < m ? asked : order[0], true);
  let waiting = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => { draw(); fill(); }); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.documentElement.dataset.drawn = String(Math.round(performance.now() - began));
})();
