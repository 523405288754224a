// Attention maps: one byte for each pair of tokens, drawn with the page's colour, told when pointed at.
(() => {
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const bytes = Uint8Array.from(atob(data.weights), (letter) => letter.charCodeAt(0));
  const size = data.tokens.length, readout = document.getElementById("readout");
  const words = data.tokens.map((token) => {
    const span = document.createElement("span");
    span.textContent = token;
    document.getElementById("words").append(span);
    return span;
  });
  const weight = (map, query, key) => bytes[(map * size + query) * size + key] / 255;
  const heat = () => getComputedStyle(document.documentElement).getPropertyValue("--heat").trim().split(" ");

  function draw(canvas) {
    const map = Number(canvas.dataset.map), context = canvas.getContext("2d"), [red, green, blue] = heat();
    const image = context.createImageData(size, size);
    for (let place = 0; place < size * size; place++) {
      // the root: weights of a few percent are most of what there is to see
      const strength = Math.sqrt(bytes[map * size * size + place] / 255);
      image.data.set([red, green, blue, 255 * strength], 4 * place);
    }
    context.putImageData(image, 0, 0);
  }

  function show(canvas, query, key) {
    const map = Number(canvas.dataset.map);
    canvas.dataset.query = query;
    canvas.dataset.key = key;
    words.forEach((span, place) => {
      span.className = place === query ? "looks" : "";
      span.style.background = place > query ? "" : `rgb(${heat().join(" ")} / ${Math.sqrt(weight(map, query, place)) * 0.8})`;
    });
    readout.textContent = key > query
      ? `${canvas.dataset.name}: ${data.tokens[query]} (${query}) cannot see ${data.tokens[key]} (${key}), which comes later`
      : `${canvas.dataset.name}: ${data.tokens[query]} (${query}) looks at ${data.tokens[key]} (${key}) with ${(100 * weight(map, query, key)).toFixed(1)} %`;
  }

  const limit = (number) => Math.max(0, Math.min(size - 1, number));
  const canvases = [...document.querySelectorAll("canvas[data-map]")];
  for (const canvas of canvases) {
    canvas.width = canvas.height = size;
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (distance, whole) => limit(Math.floor((distance / whole) * size));
      show(canvas, place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      show(canvas, limit(Number(canvas.dataset.query || 0) + step[0]), limit(Number(canvas.dataset.key || 0) + step[1]));
    });
  }
  const all = () => canvases.forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  all();
})();
