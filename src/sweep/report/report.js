"use strict";
// Texts enter the page as text nodes only, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (tag, name, ...children) => {
    const created = document.createElement(tag);
    if (name) created.className = name;
    created.append(...children);
    return created;
  };

  // ---- dose–response -----------------------------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");

  function themed(figure) {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line, paper] = ["--ink", "--soft", "--line", "--paper"].map((name) => style.getPropertyValue(name));
    const axis = { gridcolor: line, zeroline: false, linecolor: soft, tickcolor: soft, ticks: "outside", automargin: true };
    const { layout } = figure;
    return {
      ...layout,
      title: { ...layout.title, font: { size: 14 }, x: 0.02, xanchor: "left", y: 0.97, yanchor: "top" },
      xaxis: { ...axis, ...layout.xaxis, title: { ...layout.xaxis.title, standoff: 8 } },
      yaxis: { ...axis, ...layout.yaxis },
      font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      paper_bgcolor: paper,
      plot_bgcolor: paper,
      hoverlabel: { bgcolor: paper, bordercolor: soft, font: { color: ink } },
      legend: { orientation: "h", yref: "container", y: 0.01, yanchor: "bottom", x: 0, font: { size: 11 } },
      margin: { l: 50, r: 20, t: 62, b: 52 + legendHeight(figure) },
    };
  }

  // Plotly does not reserve space for a legend below the plot.
  function legendHeight({ data, layout }) {
    if (!layout.showlegend) return 0;
    const longest = Math.max(...data.map((trace) => trace.name?.length ?? 0));
    const across = Math.max(1, Math.floor(380 / (45 + 6 * longest)));
    return 6 + 18 * Math.ceil(data.filter((trace) => trace.showlegend !== false).length / across);
  }

  // Okabe and Ito's blue is too dark on a dark page.
  const series = ({ data }) => (dark.matches ? JSON.parse(JSON.stringify(data).replaceAll("#0072B2", "#3d97d8")) : data);

  const drawn = new Map(); // element: figure
  const draw = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) plot(target);
  }, { rootMargin: "300px" });

  function plot(target) {
    draw.unobserve(target);
    const figure = drawn.get(target);
    const buttons = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
    Plotly.newPlot(target, series(figure), themed(figure), { responsive: true, displaylogo: false, modeBarButtonsToRemove: buttons });
  }

  for (const article of document.querySelectorAll("article[data-axis]")) {
    const [first, others] = article.querySelectorAll(".plots");
    const figures = data.figures.filter((figure) => figure.axis === article.dataset.axis);
    figures.sort((a, b) => rank(a.measure) - rank(b.measure));
    for (const figure of figures) {
      const target = element("div", "plot");
      target.style.height = `${300 + Math.max(0, legendHeight(figure) - 24)}px`;
      target.dataset.measure = figure.measure;
      const main = data.main.includes(figure.measure);
      (main ? first : others).append(target);
      if (!main) article.querySelector(".others").hidden = false;
      drawn.set(target, figure);
    }
  }
  // Plotly's script comes after this one, so that the generations are shown without waiting for it.
  document.addEventListener("DOMContentLoaded", () => { for (const target of drawn.keys()) draw.observe(target); });
  function rank(measure) {
    return (data.main.indexOf(measure) + data.main.length + 1) % (data.main.length + 1);
  }
  dark.addEventListener("change", () => {
    for (const [target, figure] of drawn) if (target.data) Plotly.react(target, series(figure), themed(figure));
  });
  byId("more")?.addEventListener("change", (event) => byId("points").classList.toggle("all", event.target.checked));
  byId("singles")?.addEventListener("change", (event) => byId("points").classList.toggle("singles", event.target.checked));

  // ---- generations -------------------------------------------------------------------------------------------------

  const SPANS = 0, DISTANCE = 1, END = 2, SCORES = 3;
  const matrix = document.querySelector(".matrix");
  const [head, body, empty] = [".head", ".body", ".empty"].map((name) => matrix.querySelector(name));
  const state = { query: "", differs: false, sort: "order", sample: 0, columns: [], scores: [] };
  const cellOf = (row, column) => row.cells[column][state.sample];
  const equals = (cell) => cell[DISTANCE] === 0;

  function textOf(cell) {
    return cell[SPANS].map((span) => span.slice(1)).join("");
  }

  // Lower-cased once: otherwise each keystroke in the search field would lower-case all texts again.
  const lowered = new WeakMap();
  function haystack(cell) {
    let text = lowered.get(cell);
    if (text === undefined) lowered.set(cell, (text = textOf(cell).toLowerCase()));
    return text;
  }

  function visible() {
    const query = state.query.toLowerCase();
    const cells = (row) => state.columns.map((column) => cellOf(row, column)).filter(Boolean);
    const divergence = (row) => {
      const distances = cells(row).map((cell) => cell[DISTANCE]).filter((distance) => distance !== null);
      return distances.length ? distances.reduce((a, b) => a + b) / distances.length : 0;
    };
    let rows = data.rows;
    if (state.differs) rows = rows.filter((row) => cells(row).some((cell) => cell[DISTANCE] > 0));
    if (query) {
      rows = rows.filter((row) =>
        [row.id, row.prompt, row.reference].some((text) => text.toLowerCase().includes(query)) ||
        cells(row).some((cell) => haystack(cell).includes(query)));
    }
    if (state.sort === "id") {
      rows = [...rows].sort((a, b) => a.id.localeCompare(b.id, undefined, { numeric: true }));
    } else if (state.sort === "divergence") {
      const key = new Map(rows.map((row) => [row, divergence(row)]));
      rows = [...rows].sort((a, b) => key.get(b) - key.get(a));
    }
    return rows;
  }

  function texts(cell) {
    const text = element("div", "text");
    text.dir = "auto";
    const spans = cell[SPANS];
    if (!spans.some((span) => span.length > 1)) text.append(element("span", "nothing", "empty"));
    let diverged = false;
    for (const span of spans) {
      const [kind, content] = [span[0], span.slice(1)];
      if (kind !== "=" && !diverged) {
        diverged = true;
        const mark = element("i", "diverges");
        mark.title = "first divergence from the control";
        text.append(mark);
      }
      if (kind === "=") text.append(content);
      else if (kind === "~") text.append(element("span", "agrees", content));
      else if (kind === "+") text.append(element("span", "differs", content));
      else {
        const mark = element("i", "missing");
        mark.title = "words of the control are missing here";
        text.append(mark);
      }
    }
    return text;
  }

  function measures(cell, control) {
    const line = element("div", "measures");
    for (const score of state.scores) {
      // A control's divergence is from its second run, not from the text in this cell. Equal texts need no such scores.
      const { floor, implied } = data.scores[score];
      if ((control && floor) || (equals(cell) && implied)) continue;
      const value = cell[SCORES][score];
      if (value !== null) line.append(element("span", "", `${data.scores[score].title} `, element("b", "", String(+value.toPrecision(3)))));
    }
    if (equals(cell)) line.append(element("span", "", "= control"));
    if (cell[END] && cell[END] !== "stop") line.append(element("span", "cut", cell[END]));
    return line;
  }

  function cellElement(row, column) {
    const { name, control, error } = data.columns[column];
    const cell = cellOf(row, column);
    const cellNode = element("div", control ? "control" : "");
    cellNode.setAttribute("role", "cell");
    cellNode.dataset.name = name;
    if (!cell) cellNode.append(element("span", "nothing", error ? "failed" : "–"));
    else {
      if (!control && equals(cell)) cellNode.classList.add("equal");
      cellNode.append(texts(cell), measures(cell, control));
    }
    return cellNode;
  }

  // The prompt with template and special tokens, made when it is opened.
  function renderedPrompt(row) {
    const details = element("details", "rendered", element("summary", "", "as the model receives it"));
    details.addEventListener("toggle", () => {
      if (details.children.length > 1) return;
      for (const [text, forms] of row.rendered) {
        for (const [points, borders] of forms) {
          const shown = element("pre", "");
          shown.dir = "auto";
          [...borders, text.length].reduce((start, stop, index) => {
            if (start < stop) shown.append(index % 2 ? element("mark", "", text.slice(start, stop)) : text.slice(start, stop));
            return stop;
          }, 0);
          details.append(element("p", "", borders.length ? `${points}; marked: what the transforms may change` : points), shown);
        }
      }
    });
    return details;
  }

  function rowHead(row, shell) {
    const cellNode = element("div", "", element("div", "id", row.id));
    cellNode.setAttribute("role", "rowheader");
    const prompt = element("div", "prompt", row.prompt);
    prompt.dir = "auto";
    cellNode.append(prompt);
    if (row.reference) cellNode.append(element("div", "reference", `reference: ${row.reference}`));
    if (row.rendered.length) cellNode.append(renderedPrompt(row));
    const button = element("button", "expand", shell.classList.contains("open") ? "less" : "more");
    button.type = "button";
    button.setAttribute("aria-expanded", String(shell.classList.contains("open")));
    button.addEventListener("click", () => {
      const open = shell.classList.toggle("open");
      button.textContent = open ? "less" : "more";
      button.setAttribute("aria-expanded", String(open));
    });
    cellNode.firstChild.append(button);
    return cellNode;
  }

  // Only rows near the viewport have content; the others keep their height.
  const shells = new Map(data.rows.map((row) => {
    const shell = element("div", "row");
    shell.setAttribute("role", "row");
    shell.dataset.id = row.id;
    return [row, shell];
  }));
  const rowOf = new Map([...shells].map(([row, shell]) => [shell, row]));

  function fill(shell) {
    if (shell.firstChild) return;
    const row = rowOf.get(shell);
    shell.append(rowHead(row, shell), ...state.columns.map((column) => cellElement(row, column)));
    const cut = [...shell.querySelectorAll(".prompt, .text")].some((text) => text.scrollHeight > text.clientHeight + 2);
    shell.querySelector(".expand").hidden = !cut && !shell.classList.contains("open");
  }

  function drop(shell) {
    if (!shell.firstChild || shell.contains(document.activeElement)) return;
    shell.style.setProperty("--height", `${shell.offsetHeight}px`);
    shell.replaceChildren();
  }

  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting && fill(target);
    for (const { target, isIntersecting } of entries) isIntersecting || drop(target);
    mark();
  }, { root: matrix, rootMargin: "600px 0px" });

  function header() {
    const first = element("div", "", element("span", "", "prompt"));
    const cells = state.columns.map((column) => {
      const { name, control, error } = data.columns[column];
      const cellNode = element("div", control ? "control" : "", element("span", "", name));
      if (error) {
        const failed = element("b", "failed", "failed");
        failed.title = error;
        cellNode.append(failed);
      }
      if (!control) {
        const hide = element("button", "", "×");
        hide.type = "button";
        hide.title = `hide ${name}`;
        hide.setAttribute("aria-label", `hide ${name}`);
        hide.addEventListener("click", () => choose(state.columns.filter((other) => other !== column)));
        cellNode.append(hide);
      }
      return cellNode;
    });
    head.replaceChildren(first, ...cells);
    for (const cellNode of head.children) cellNode.setAttribute("role", "columnheader");
  }

  function show() {
    const rows = visible();
    const visibleShells = rows.map((row) => shells.get(row));
    near.disconnect();
    for (const shell of rowOf.keys()) {
      shell.replaceChildren();
      shell.style.removeProperty("--height");
    }
    header();
    body.replaceChildren(...visibleShells);
    for (const shell of visibleShells) near.observe(shell);
    empty.hidden = rows.length > 0;
    byId("status").textContent = `${rows.length} of ${data.rows.length} prompt${data.rows.length === 1 ? "" : "s"}, ${state.columns.length} of ${data.columns.length} columns`;
  }

  // Highlight the search text, if the browser can do that without changing the page.
  function mark() {
    if (!window.Highlight || !CSS.highlights) return;
    const ranges = [];
    const query = state.query.toLowerCase();
    const walker = query && document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
    while (query && walker.nextNode()) {
      const node = walker.currentNode;
      const text = node.data.toLowerCase();
      if (text.length !== node.data.length) continue;
      for (let at = text.indexOf(query); at >= 0; at = text.indexOf(query, at + query.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, at + query.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("hit", new Highlight(...ranges));
  }

  function checks(list, titles, chosen, changed) {
    const boxes = titles.map((name, index) => {
      const box = element("input");
      box.type = "checkbox";
      box.value = index;
      box.checked = chosen.includes(index);
      box.addEventListener("change", () => changed(boxes.filter((b) => b.checked).map((b) => +b.value)));
      list.append(element("li", "", element("label", "", box, ` ${name}`)));
      return box;
    });
    return boxes;
  }

  const indices = (items, test) => items.map((_, index) => index).filter((index) => test(items[index]));
  const columnBoxes = checks(byId("columns").querySelector("ul"), data.columns.map((column) => column.name), [], choose);
  function choose(columns) {
    state.columns = columns;
    columnBoxes.forEach((box, index) => (box.checked = columns.includes(index)));
    byId("columns").querySelector(".count").textContent = `${columns.length}/${data.columns.length}`;
    show();
  }
  const picks = { all: () => true, first: (column) => column.shown, none: (column) => column.control };
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.addEventListener("click", () => choose(indices(data.columns, picks[button.dataset.pick])));
  }
  state.scores = indices(data.scores, (score) => score.shown);
  checks(byId("scores").querySelector("ul"), data.scores.map((score) => score.title), state.scores, (scores) => {
    state.scores = scores;
    show();
  });
  byId("scores").hidden = data.scores.length === 0;

  let waiting;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = event.target.value.trim(); show(); }, 120);
  });
  byId("differs").addEventListener("change", (event) => { state.differs = event.target.checked; show(); });
  byId("sort").addEventListener("change", (event) => { state.sort = event.target.value; show(); });
  byId("sample")?.addEventListener("change", (event) => { state.sample = +event.target.value; show(); });
  byId("full").addEventListener("change", (event) => { matrix.classList.toggle("clamped", !event.target.checked); show(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "Escape") closeMenus(null);
  });
  document.addEventListener("click", (event) => closeMenus(event.target));
  function closeMenus(inside) {
    for (const menu of document.querySelectorAll(".menu[open]")) if (!inside || !menu.contains(inside)) menu.open = false;
  }
  // Print needs all rows in the page, and plots do not notice that the page has become narrower.
  const PAPER = { autosize: false, width: 340, height: 290 };
  addEventListener("beforeprint", () => {
    near.disconnect();
    for (const shell of body.children) fill(shell);
    for (const target of drawn.keys()) {
      if (!target.offsetParent) continue;
      if (!target.data) plot(target);
      Plotly.relayout(target, PAPER);
    }
  });
  addEventListener("afterprint", () => {
    show();
    for (const target of drawn.keys()) if (target.data) Plotly.relayout(target, { autosize: true, width: null, height: null });
  });

  matrix.classList.add("clamped");
  choose(indices(data.columns, (column) => column.shown));
})();
