// Tell the values under the pointer. The page says everything without this script, too.
const values = document.createElement("div");
values.id = "values";
values.hidden = true;
document.body.append(values);
const short = (x) => (Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(2) : String(+x.toPrecision(4)));
const back = ([low, high, start, end], place) => low + ((place - start) / (end - start)) * (high - low);
for (const chart of document.querySelectorAll("svg[data-chart]")) {
  const { x, y, names, over } = JSON.parse(chart.dataset.chart);
  const lines = [...chart.querySelectorAll("polyline")].map((line) => [+line.dataset.series, [...line.points]]);
  const pointer = document.createElementNS("http://www.w3.org/2000/svg", "line");
  pointer.setAttribute("class", "pointer");
  chart.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    if (at.x < x[2] || at.x > x[3] || !lines.length) return leave();
    const nearest = new Map();
    for (const [series, points] of lines)
      for (const point of points) {
        const known = nearest.get(series);
        if (!known || Math.abs(point.x - at.x) < Math.abs(known.x - at.x)) nearest.set(series, point);
      }
    const [first] = nearest.values();
    for (const [name, place] of [["x1", first.x], ["x2", first.x], ["y1", y[2]], ["y2", y[3]]]) pointer.setAttribute(name, place);
    chart.append(pointer);
    const told = [...nearest].map(([series, point]) => `${names[series]} ${short(back(y, point.y))}`);
    values.textContent = `${over} ${short(back(x, first.x))}: ${told.join(", ")}`;
    values.hidden = false;
    const left = Math.min(event.pageX + 14, document.documentElement.clientWidth - values.offsetWidth - 8);
    values.style.left = `${Math.max(4, left)}px`;
    values.style.top = `${event.pageY + 14}px`;
  });
  const leave = () => { values.hidden = true; pointer.remove(); };
  chart.addEventListener("pointerleave", leave);
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
