"use strict";
// The page is whole without this: here are the filter, the order of tables, and the way back from a figure.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  function prepareFilter(form) {
    const rows = all(".verdict");
    if (!rows.length) return;
    const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const told = form.querySelector("output");
    const apply = () => {
      const statuses = all("input[name=status]:checked", form).map((box) => box.value);
      const text = form.elements.text.value.trim().toLowerCase();
      const active = statuses.length > 0 || text !== "";
      const fits = (row) =>
        (!statuses.length || statuses.includes(row.dataset.status)) && words.get(row).includes(text);
      rows.forEach((row) => { row.hidden = active && !fits(row); });
      document.getElementById("main").toggleAttribute("data-filtered", active);
      for (const group of all(".group, .topic")) {
        const found = all(".verdict", group).some((row) => !row.hidden);
        group.toggleAttribute("data-empty", active && !found);
        if (active && found && group.tagName === "DETAILS") group.open = true;
      }
      const left = rows.filter((row) => !row.hidden).length;
      told.textContent = active ? `${left} of ${rows.length} claims` : "";
    };
    form.addEventListener("input", apply);
    form.addEventListener("reset", () => setTimeout(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }

  const superscripts = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  function value(text) {
    const plain = text.trim().replace(/ \[[^\]]*\]|[()]/g, "").replace(/−/g, "-").replace(/,/g, "").replace("∞", "Infinity")
      .replace(/ × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/, (_, power) =>
        "e" + [...power].map((sign) => (sign === "⁻" ? "-" : superscripts.indexOf(sign))).join(""));
    return plain === "" || Number.isNaN(Number(plain)) ? null : Number(plain);
  }

  function compare(one, other) {
    const [a, b] = [value(one), value(other)];
    if (a !== null && b !== null) return a - b;
    if (a === null && b === null) return one.localeCompare(other);
    return a === null ? 1 : -1;
  }

  function makeSortable(table) {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2) return;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        const sign = order === "ascending" ? 1 : -1;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const cell = (row) => row.cells[column].textContent;
        body.append(...[...body.rows].sort((one, other) => sign * compare(cell(one), cell(other))));
      });
    });
  }

  function goBackFromFigures() {
    let opened = false;
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='#']");
      if (!link) return;
      if (link.classList.contains("close") && opened) {
        event.preventDefault();
        opened = false;
        history.back();
      } else {
        const target = document.getElementById(link.hash.slice(1));
        opened = target !== null && target.tagName === "FIGURE";
      }
    });
    document.addEventListener("keydown", (event) => {
      const close = document.querySelector("figure:target .close");
      if (event.key === "Escape" && close) close.click();
    });
  }

  // what is linked to stands open, in browsers that do not open it by themselves, too
  function openTarget() {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { /* a name that is not encoded is itself */ }
    const target = document.getElementById(name);
    for (let part = target; part; part = part.parentElement) {
      if (part.tagName === "DETAILS") part.open = true;
    }
  }

  prepareFilter(document.getElementById("filter"));
  all("table.data").forEach(makeSortable);
  goBackFromFigures();
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();
