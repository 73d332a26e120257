// Shows films side by side under one cursor: recorded ones (mode "report"), or a dream that is driven (mode "play").
// Data: {mode, fps, episodes: [{name, instruction, success, note, real, imagined, actions, plots, fans, subgoals}]},
// a film is {sheet | images, columns, count, width, height}; a plot's lines have a value or null for each frame.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const live = data.mode === "play";
  const at = (id) => document.getElementById(id);
  const episodes = data.episodes;
  let chosen = 0, t = 0, timer = null;

  // ---- frames

  async function load(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  }

  async function unpack(film) {
    if (film && film.sheet && !film.image) film.image = await load(film.sheet);
  }

  function draw(context, film, step, width, height) {
    const { columns, width: w, height: h } = film;
    if (film.images) context.drawImage(film.images[step], 0, 0, width, height);
    else context.drawImage(film.image, (step % columns) * w, Math.floor(step / columns) * h, w, h, 0, 0, width, height);
  }

  function canvasOf(id, width, height) {
    const canvas = at(id).querySelector("canvas");
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: id !== "fan" });
    context.imageSmoothingEnabled = false;
    return { canvas, context };
  }

  function drawFilm(id, film) {
    at(id).hidden = !film;
    if (!film) return null;
    const { canvas, context } = canvasOf(id, film.width, film.height);
    draw(context, film, Math.min(t, film.count - 1), film.width, film.height);
    canvas.setAttribute("aria-label", `${id} frame, step ${t}`);
    return context.getImageData(0, 0, film.width, film.height);
  }

  function drawDifference(one, other) {
    at("difference").hidden = !(one && other);
    if (!one || !other) return;
    const { canvas, context } = canvasOf("difference", one.width, one.height);
    const result = context.createImageData(one.width, one.height);
    for (let i = 0; i < one.data.length; i++) {
      result.data[i] = i % 4 === 3 ? 255 : Math.abs(one.data[i] - other.data[i]);
    }
    context.putImageData(result, 0, 0);
    canvas.setAttribute("aria-label", `difference of the two, step ${t}; black where they agree`);
  }

  // ---- the candidates of a plan

  const FAN = 480;

  function drawFan(episode) {
    const fans = episode.fans;
    const index = fans ? fans.plans.findLastIndex((plan) => plan.at <= t) : -1;
    at("fan").hidden = !fans || !fans.objects.length;
    if (at("fan").hidden || index < 0) return;
    const plan = fans.plans[index], before = fans.plans[index - 1];
    const { canvas, context } = canvasOf("fan", FAN, FAN);
    draw(context, episode.real, plan.at, FAN, FAN);
    context.fillStyle = "rgba(255,255,255,0.55)";
    context.fillRect(0, 0, FAN, FAN);
    const place = (path, k) => [(path[2 * k] / fans.scale[0] + 1) * FAN / 2, (path[2 * k + 1] / fans.scale[1] + 1) * FAN / 2];
    const line = (path, first, colour, width, alpha) => {
      context.globalAlpha = alpha;
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      if (first) context.moveTo(...first);
      for (let k = 0; k < path.length / 2; k++) context.lineTo(...place(path, k));
      context.stroke();
    };
    context.lineJoin = context.lineCap = "round";
    fans.objects.forEach((object, o) => {
      const named = CSS.supports("color", object.name) ? object.name : "#333";
      const colour = object.colour.length ? `rgb(${object.colour.join(",")})` : named;
      const done = before ? plan.at - before.at - 1 : -1;  // where the plan before had it by now
      const first = before && 2 * done < before.chosen[o].length ? place(before.chosen[o], done) : null;
      for (let c = plan.paths.length - 1; c >= 0; c--) {
        line(plan.paths[c][o], first, colour, 1.5, 0.2 + 0.35 * (1 - c / plan.paths.length));
      }
      line(plan.chosen[o], first, "#fff", 7, 0.9);
      line(plan.chosen[o], first, colour, 3.5, 1);
      const now = t - plan.at - 1;
      for (let k = 0; k < plan.chosen[o].length / 2; k++) {
        context.beginPath();
        context.arc(...place(plan.chosen[o], k), k === now ? 9 : 4.5, 0, 7);
        context.fillStyle = k === now ? "#fff" : colour;
        context.fill();
        context.strokeStyle = k === now ? colour : "#fff";
        context.lineWidth = k === now ? 4 : 1;
        context.stroke();
      }
    });
    context.globalAlpha = 1;
    const [low, high] = [Math.min(...plan.costs), Math.max(...plan.costs)].map((cost) => cost.toFixed(1));
    const text = `plan of step ${plan.at}` + (plan.costs.length ? `, cost ${low} to ${high}` : "");
    at("fan").querySelector("figcaption").textContent = text;
    canvas.setAttribute("aria-label", `${text}; imagined paths of ${plan.paths.length} candidates, of ${fans.objects.map((o) => o.name).join(", ")}, the chosen one bold`);
  }

  // ---- curves

  const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [118, 46, 8, 8, 20];
  let plots = [], WIDTH = 520;  // as wide as the page lets it be, in px, so that letters keep their size

  function svg(name, attributes, parent, text) {
    const node = document.createElementNS(at("vector").namespaceURI, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  }

  function element(name, text, parent) {
    const node = document.createElement(name);
    if (text) node.textContent = text;
    return parent.appendChild(node);
  }

  const xOf = (step, last) => LEFT + (WIDTH - LEFT - RIGHT) * (last ? step / last : 0);

  function buildPlots(episode, last) {
    at("plots").replaceChildren(...episode.plots.map(() => Object.assign(document.createElement("div"), { className: "plot" })));
    const boxes = at("plots").children;
    if (boxes.length) WIDTH = Math.max(200, boxes[0].clientWidth);  // all are as wide
    plots = episode.plots.map((plot, i) => {
      const box = boxes[i];
      const heading = element("h2", "", box);
      element("span", plot.title + (plot.unit ? `, ${plot.unit}` : ""), heading);
      const readout = legend(plot, element("span", "", heading));
      const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": plot.title }, box);
      const values = plot.lines.flatMap((line) => line.values).filter((value) => value !== null);
      let low = Math.min(...values), high = Math.max(...values);
      if (low > 0 && low < high / 2) low = 0;
      if (!(high > low)) [low, high] = values.length ? [low - 0.5, high + 0.5] : [0, 1];
      if (plot.range) [low, high] = plot.range;
      const yOf = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
      for (const value of [low, high]) {
        svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: yOf(value), y2: yOf(value) }, picture);
        svg("text", { x: LEFT - 5, y: yOf(value) + 4, "text-anchor": "end" }, picture, short(value));
      }
      svg("text", { x: LEFT, y: HEIGHT - 5 }, picture, "0");
      svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, picture, `step ${last}`);
      for (const line of plot.lines) drawLine(picture, line, last, yOf);
      const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM }, picture);
      picture.addEventListener("pointerdown", (event) => { picture.setPointerCapture(event.pointerId); pick(event, picture, last); });
      picture.addEventListener("pointermove", (event) => { if (event.buttons) pick(event, picture, last); });
      return { plot, cursor, readout, last };
    });
  }

  const kindOf = (line) => (line.name === "real" ? "real" : "dream");

  function legend(plot, parent) {  // how each line is drawn, what it is, and a place for its value
    return plot.lines.map((line) => {
      const entry = element("span", "", parent);
      entry.className = kindOf(line);
      if (line.name) svg("polyline", { class: kindOf(line), points: "0,4 24,4" }, svg("svg", { class: "swatch", viewBox: "0 0 24 8", "aria-hidden": "true" }, entry));
      element("span", line.name ? ` ${line.name} ` : "", entry);
      return element("span", "", entry);
    });
  }

  function drawLine(picture, line, last, yOf) {
    const kind = kindOf(line);
    let run = [];
    const end = () => {
      if (run.length === 1) svg("circle", { class: kind, cx: run[0][0], cy: run[0][1], r: 2.5 }, picture);
      if (run.length > 1) svg("polyline", { class: kind, points: run.map((p) => p.map((x) => x.toFixed(1)).join(",")).join(" ") }, picture);
      run = [];
    };
    line.values.forEach((value, step) => { if (value === null) end(); else run.push([xOf(step, last), yOf(value)]); });
    end();
  }

  function pick(event, picture, last) {
    const box = picture.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    stop();
    go(Math.round(share * last));
  }

  const short = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

  function movePlots() {
    for (const { plot, cursor, readout, last } of plots) {
      cursor.setAttribute("x1", xOf(t, last));
      cursor.setAttribute("x2", xOf(t, last));
      plot.lines.forEach((line, i) => { readout[i].textContent = (line.values[t] ?? null) === null ? "" : short(line.values[t]); });
    }
  }

  // ---- one cursor over all of it

  const lastOf = (episode) => (episode.real || episode.imagined).count - 1;

  function show() {
    const episode = episodes[chosen];
    const real = drawFilm("real", episode.real), imagined = drawFilm("imagined", episode.imagined);
    drawDifference(real, imagined);
    drawFan(episode);
    movePlots();
    const last = lastOf(episode);
    at("scrubber").max = last;
    at("scrubber").value = t;
    at("scrubber").setAttribute("aria-valuetext", `step ${t} of ${last}`);
    at("step").textContent = `step ${t} of ${last}`;
    const action = episode.actions[t];
    [0, 1].forEach((i) => { if (action && document.activeElement !== at(`action${i}`)) at(`action${i}`).value = action[i] ?? 0; });
  }

  function go(step) {
    t = Math.max(0, Math.min(step, lastOf(episodes[chosen])));
    show();
  }

  async function choose(index) {
    chosen = (index + episodes.length) % episodes.length;
    const episode = episodes[chosen];
    await Promise.all([unpack(episode.real), unpack(episode.imagined)]);
    at("episode").value = chosen;
    at("instruction").textContent = episode.instruction;
    at("outcome").textContent = episode.note;
    at("outcome").className = episode.success === null ? "badge" : `badge ${episode.success ? "good" : "bad"}`;
    at("subgoals").hidden = !(episode.subgoals || []).length;
    at("subgoals").querySelector(".strip").replaceChildren(...(episode.subgoals || []).map(({ image, caption }) => {
      const figure = document.createElement("figure");
      figure.append(Object.assign(new Image(), { src: image, alt: caption }), Object.assign(document.createElement("figcaption"), { textContent: caption }));
      return figure;
    }));
    buildPlots(episode, lastOf(episode));
    go(t);
  }

  function list() {
    at("episode").replaceChildren(...episodes.map((episode, i) => new Option(episode.name + (live ? "" : `, ${episode.note}`), i)));
  }

  const delay = () => 1000 / Number(at("speed").value);

  function stop() {
    clearTimeout(timer);
    timer = null;
    at("play").textContent = "Play";
    at("play").setAttribute("aria-pressed", "false");
  }

  function play() {
    if (timer !== null) return stop();
    if (t >= lastOf(episodes[chosen])) go(0);
    at("play").textContent = "Pause";
    at("play").setAttribute("aria-pressed", "true");
    const tick = () => {
      if (t >= lastOf(episodes[chosen])) return stop();
      go(t + 1);
      timer = setTimeout(tick, delay());
    };
    timer = setTimeout(tick, delay());
  }

  const keys = {
    " ": play, Home: () => go(0), End: () => go(Infinity),
    ",": () => { stop(); go(t - 1); }, ".": () => { stop(); go(t + 1); },
    PageUp: () => { stop(); choose(chosen - 1); }, PageDown: () => { stop(); choose(chosen + 1); },
  };
  if (!live) Object.assign(keys, { ArrowLeft: keys[","], ArrowRight: keys["."], ArrowUp: keys.PageUp, ArrowDown: keys.PageDown });

  const slides = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"]);  // a slider's own keys

  function onKey(event) {
    const field = event.target.closest("input, select, button, textarea");
    if (event.key === "Escape" && field) return field.blur();
    if (field && field.id === "scrubber" && slides.has(event.key)) return;
    const typing = field && field.id !== "scrubber" && !(field.tagName === "BUTTON" && event.key !== " ");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (live && drive.key(event)) return event.preventDefault();
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  }

  function say(text, wrong) {
    at("status").textContent = text;
    at("status").className = wrong ? "wrong" : "";
  }

  // ---- a dream that is driven: each branch is an episode; driving from an earlier frame begins a new one

  const drive = live ? makeDrive() : null;

  function makeDrive() {
    const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
    const held = new Set(), tapped = new Set();  // keys that are down; keys that came down since the last step
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const nodes = [];  // for each branch, the server's numbers of its frames
    let pointer = null, scene = null, begun = 0, driving = false, queue = Promise.resolve();

    async function call(name, body) {
      const headers = { "Content-Type": "application/json", "X-Token": token };
      const answer = await fetch(`/api/${name}`, { method: "POST", headers, body: JSON.stringify(body) });
      const result = await answer.json();
      if (!answer.ok) throw new Error(result.error);
      return result;
    }

    function release() {
      held.clear();
      tapped.clear();
      pointer = null;
    }

    function inTurn(work) {  // one thing after the other; what is refused is said
      queue = queue.then(work).catch((error) => { release(); say(error.message, true); });
    }

    function blank(name) {
      const film = (there) => (there ? { images: [], count: 0, width: scene.size, height: scene.size } : null);
      const plots = scene.plots.map((plot) => ({ ...plot, lines: plot.lines.map((line) => ({ ...line, values: [] })) }));
      nodes.push([]);
      return { name, instruction: scene.instruction, success: null, note: "", real: film(scene.real), imagined: film(true), actions: [], plots, places: [], fans: null };
    }

    async function append(episode, numbers, frame) {
      const films = [["imagined", frame.imagined], ...(episode.real ? [["real", frame.real]] : [])];
      for (const [name, uri] of films) episode[name].count = episode[name].images.push(await load(uri));
      if (frame.action) episode.actions.push(frame.action);
      episode.plots.forEach((plot) => plot.lines.forEach((line) => line.values.push(frame.values[line.key] ?? null)));
      episode.places.push(frame.place);
      episode.note = frame.note;
      episode.success = frame.success || null;
      numbers.push(frame.id);
    }

    async function begin(answer) {
      scene = answer.scene;
      episodes.length = nodes.length = 0;
      begun = 1;
      episodes.push(blank("branch 1"));
      await append(episodes[0], nodes[0], answer.frame);
      t = 0;
      list();
      await choose(0);
      at("seed").value = scene.seed;
      at("wish").value = scene.instruction;
      [0, 1].forEach((i) => { at(`action${i}`).previousSibling.textContent = `${scene.axes[i] || "-"} `; });
      pace(null);
    }

    function pace(answer) {
      const speed = answer ? `, ${answer.frames_per_second.toFixed(1)} frames/s (${answer.milliseconds.toFixed(0)} ms a frame)` : "";
      at("pace").textContent = `${scene.checkpoint} on the ${scene.engine} engine${speed}`;
      if (at("status").textContent) say("");
    }

    function branch(from, step) {  // what is driven: this branch at its end, or a new one from this step
      if (step === lastOf(episodes[from])) return from;
      const old = episodes[from], copy = blank(`branch ${++begun}, from step ${step}`), end = step + 1;
      for (const name of ["real", "imagined"]) {
        if (old[name]) Object.assign(copy[name], { images: old[name].images.slice(0, end), count: end });
      }
      copy.plots.forEach((plot, i) => plot.lines.forEach((line, j) => { line.values = old.plots[i].lines[j].values.slice(0, end); }));
      copy.actions = old.actions.slice(0, step);
      copy.places = old.places.slice(0, end);
      nodes[nodes.length - 1] = nodes[from].slice(0, end);
      episodes.push(copy);
      list();
      return episodes.length - 1;
    }

    async function step(action) {
      const from = chosen, start = t;
      const answer = await call("step", { scene: scene.number, frame: nodes[from][start], action });
      const index = branch(from, start);  // only now: it might have been refused
      await append(episodes[index], nodes[index], answer.frame);
      const followed = chosen === from && t === start;  // else someone looks elsewhere meanwhile, and is left there
      if (followed) t = start + 1;
      await choose(followed ? index : chosen);
      pace(answer);
      return followed;
    }

    function direction() {
      const wanted = new Array(scene.action_size).fill(0);
      if (pointer) {
        const from = episodes[chosen].places[t] || [0, 0];
        pointer.forEach((x, i) => { wanted[i] = (x * scene.scale[i] - from[i]) / (0.16 * Math.abs(scene.scale[i])); });
      } else if (held.size + tapped.size) {
        for (const name of new Set([...held, ...tapped])) arrows[name].forEach((x, i) => { wanted[i] += x * Math.sign(scene.scale[i]); });
      } else return null;
      tapped.clear();
      return wanted.map((x) => Math.max(-1, Math.min(1, x)));
    }

    async function onward() {
      stop();
      for (let action = direction(); action; action = direction()) {
        const start = performance.now();
        await step(action);
        const left = delay() - (performance.now() - start);
        if (left > 0) await new Promise((done) => setTimeout(done, left));
      }
    }

    function goOn() {
      if (driving) return;
      driving = true;
      inTurn(() => onward().finally(() => { driving = false; }));
    }

    function point(event) {
      const box = event.currentTarget.getBoundingClientRect();
      pointer = [(event.clientX - box.left) / box.width * 2 - 1, (event.clientY - box.top) / box.height * 2 - 1];
    }

    function listen() {
      const canvas = at("imagined").querySelector("canvas");
      canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); point(event); goOn(); });
      canvas.addEventListener("pointermove", (event) => { if (pointer) point(event); });
      for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { pointer = null; });
      addEventListener("keyup", (event) => held.delete(event.key));
      addEventListener("blur", release);
      at("drive").addEventListener("submit", (event) => {
        event.preventDefault();
        const wish = at("wish").value.trim();
        const seed = Number(at("seed").value), kept = seed === scene.seed ? scene.asked : null;  // another scene has its own
        release();
        inTurn(async () => begin(await call("reset", { seed, instruction: wish === scene.instruction ? kept : wish || null })));
      });
      at("again").addEventListener("submit", (event) => {
        event.preventDefault();
        const action = new Array(scene.action_size).fill(0);
        [0, 1].forEach((i) => { if (i < action.length) action[i] = Number(at(`action${i}`).value); });
        const later = at("rest").checked ? episodes[chosen].actions.slice(t + 1) : [];
        release();
        inTurn(async () => { for (const next of [action, ...later]) if (!(await step(next))) break; });
      });
      for (const id of ["drive", "again"]) at(id).hidden = false;
    }

    return {
      key(event) {
        if (!arrows[event.key] || event.shiftKey) return false;
        held.add(event.key);
        if (!event.repeat) tapped.add(event.key);
        goOn();
        return true;
      },
      async start() {
        if (!token) throw new Error("Open the address that the terminal shows; its token is missing here.");
        await begin(await call("reset", { seed: data.seed, instruction: data.instruction }));
        listen();
      },
    };
  }

  // ---- start

  async function start() {
    document.body.classList.toggle("live", live);
    at("keys").textContent = live
      ? "Arrow keys, or the mouse held on the imagined frame, drive the dream. Comma, full stop or the slider go back and forth (arrow keys too, while the slider has the focus; Escape gives it up), space plays, Page Up and Page Down switch branches. Driving from an earlier frame dreams on from there."
      : "Left and right step, space plays, up and down switch episodes, Home and End go to the ends. Curves can be dragged.";
    at("episode").closest("label").firstChild.textContent = live ? "Branch " : "Episode ";
    at("viewer").hidden = false;
    if (live) await drive.start();
    else { at("pace").textContent = data.headline; list(); await choose(0); }
    if ([...at("speed").options].some((option) => option.value === String(data.fps))) at("speed").value = data.fps;
    at("play").addEventListener("click", play);
    at("scrubber").addEventListener("input", () => { stop(); go(Number(at("scrubber").value)); });
    at("episode").addEventListener("change", () => { stop(); choose(Number(at("episode").value)); });
    addEventListener("keydown", onKey);
    new ResizeObserver(() => {
      if (at("plots").firstChild && at("plots").firstChild.clientWidth === WIDTH) return;
      buildPlots(episodes[chosen], lastOf(episodes[chosen]));
      movePlots();
    }).observe(at("plots"));
  }

  start().catch((error) => say(error.message, true));
})();
