// What a page of ldmprobe does: one slider over training that moves samples, scatters and curves; buttons that choose
// between charts; and what is said of a point. Without it the page shows the last probe.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const at = (steps, step) => steps.findLastIndex(each => each <= step);

  // --- charts of which one is shown
  all(".choice").forEach(choice => {
    const [bar, ...charts] = choice.children;
    all("button", bar).forEach((button, k) => button.addEventListener("click", () => {
      all("button", bar).forEach((each, i) => each.setAttribute("aria-pressed", i === k));
      charts.forEach((chart, i) => { chart.hidden = i !== k; });
    }));
  });

  // --- over training
  const samples = all("[data-frames]").map(grid => {
    const frames = JSON.parse(grid.dataset.frames), steps = JSON.parse(grid.dataset.steps);
    return step => frames[Math.max(0, at(steps, step))].forEach((uri, i) => { grid.children[i].src = uri; });
  });
  const scatters = all("[data-moves]").map(figure => {
    const steps = figure.dataset.steps.split(",").map(Number);
    const frames = figure.dataset.moves.split(",").map(packed => Uint8Array.from(atob(packed), c => c.charCodeAt(0)));
    const paths = all("[data-points]", figure).map(path => [path, path.dataset.points.split(",").map(Number)]);
    return step => {
      const bytes = frames[Math.max(0, at(steps, step))];
      paths.forEach(([path, points]) => path.setAttribute("d", points.map(i => {
        const x = bytes[3 * i] << 4 | bytes[3 * i + 1] >> 4, y = (bytes[3 * i + 1] & 15) << 8 | bytes[3 * i + 2];
        return x || y ? `M${(x / 4.095).toFixed(1)} ${(y / 4.095).toFixed(1)}h0` : "";
      }).join("")));
    };
  });
  const curves = all("figure").map(figure => all("[data-step]", figure)).filter(lines => lines.length > 1).map(lines => {
    const steps = lines.map(line => +line.dataset.step);
    return step => {
      const chosen = Math.max(0, at(steps, step));
      lines.forEach((line, i) => {
        line.classList.toggle("chosen", i === chosen);
        line.classList.toggle("faded", i !== chosen);
      });
    };
  });
  const stages = all(".stages").map(stages => {
    const parts = [...stages.children], steps = parts.map(part => +part.dataset.stage);
    return step => parts.forEach((part, i) => { part.hidden = i !== Math.max(0, at(steps, step)); });
  });
  const slider = document.querySelector(".training");
  if (slider) {
    const steps = JSON.parse(slider.dataset.training), [label, input, play] = slider.children;
    const show = k => {
      const step = steps[k];
      label.textContent = `step ${step.toLocaleString("en")}`;
      input.setAttribute("aria-valuetext", `training step ${step}`);
      [samples, scatters, curves, stages].flat().forEach(move => move(step));
    };
    let playing = 0;
    const stop = () => { clearInterval(playing); playing = 0; play.textContent = "▶ play"; };
    input.addEventListener("input", () => { stop(); show(+input.value); });
    play.addEventListener("click", () => {
      if (playing) return stop();
      if (+input.value === steps.length - 1) input.value = -1;
      play.textContent = "❚❚ stop";
      const next = () => {
        input.value = +input.value + 1;
        show(+input.value);
        if (+input.value >= steps.length - 1) stop();
      };
      if (+input.value <= 0) { input.value = 0; show(0); }
      playing = setInterval(next, 700);
    });
  }

  // --- what is said of a point
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const number = value => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(2) : value.toLocaleString("en", {maximumSignificantDigits: 3})).replace("-", "−");
  const axis = text => {
    const [first, last, log] = text.split(",").map(Number);
    return place => { const value = first + (last - first) * place / 1000; return log ? 10 ** value : value; };
  };
  const points = new WeakMap();
  const placesOf = line => {
    if (!points.has(line)) {
      points.set(line, [...line.getAttribute("d").matchAll(/[ML](\S+) ([^ML]+)/g)].map(m => [+m[1], +m[2]]));
    }
    return points.get(line);
  };
  const ofCells = (cells, x, y) => {
    const {columns, rows, low, high, shades} = cells.dataset;
    const steps = columns.split("|"), levels = rows.split("|");
    const i = Math.floor(x / 1000 * steps.length), j = Math.floor(y / 1000 * levels.length);
    const shade = atob(shades).charCodeAt(j * steps.length + i);
    const end = shade === 0 ? "≤ " : shade === 254 ? "≥ " : "";
    const value = shade === 255 ? "no value" : end + number(+low + shade / 254 * (high - low));
    return `training step ${steps[i]}\nlog-SNR ${levels[j]}\n${value}`;
  };
  const ofLines = (figure, x, y, wide, tall) => {
    let best = null, nearest = 30;
    for (const line of all(".line", figure)) {
      for (const [px, py] of placesOf(line)) {
        const far = Math.hypot((px - x) * wide / 1000, (py - y) * tall / 1000);
        if (far < nearest) [best, nearest] = [[line, px, py], far];
      }
    }
    if (!best) return "";
    const [line, px, py] = best;
    return `${line.dataset.name}\n${number(axis(figure.dataset.x)(px))}: ${number(axis(figure.dataset.y)(py))}`.trim();
  };
  document.addEventListener("pointermove", event => {
    if (!event.target.closest) return;
    const term = event.target.closest(".term");
    if (term) return explain(term);
    const plot = event.target.closest(".plot");
    tip.hidden = true;
    if (!plot) return;
    const box = plot.getBoundingClientRect(), cells = plot.querySelector(".cells");
    const x = (event.clientX - box.left) / box.width * 1000, y = (event.clientY - box.top) / box.height * 1000;
    const text = cells ? ofCells(cells, x, y) : ofLines(plot.parentElement, x, y, box.width, box.height);
    if (!text) return;
    say(text, event.clientX + 14, event.clientY + 14);
  });

  // --- what a term means: where one points at it, or comes to it by keyboard
  const say = (text, x, y, words = false) => {
    tip.textContent = text;
    tip.classList.toggle("words", words);
    tip.hidden = false;
    const room = innerWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(x, room)) + scrollX}px`;
    tip.style.top = `${y + scrollY}px`;
  };
  const explain = term => {
    const heading = document.getElementById(term.hash.slice(1)), box = term.getBoundingClientRect();
    if (heading) say(heading.nextElementSibling.textContent, box.left, box.bottom + 5, true);
  };
  document.addEventListener("focusin", event => event.target.matches(".term") && explain(event.target));
  document.addEventListener("focusout", () => { tip.hidden = true; });
  document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
})();
