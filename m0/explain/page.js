(function (root, data) {
  const FOR = data.colours[0], AGAINST = data.colours[1], TOP = data.top[0], LEAST = data.top[1];
  const all = (what, from) => [...(from || root).querySelectorAll(what)], one = what => root.querySelector(what);
  const texts = all('.w'), seen = all('.document .p'), items = all('.document .w, .document .p');
  const canvases = all('canvas'), tip = one('.tip'), said = one('.said'), row_name = one('.row');
  tip.id = 'm0-tip-' + Math.random().toString(36).slice(2);
  all('.still').forEach(image => image.remove());
  canvases.forEach(canvas => canvas.hidden = false);

  // --- numbers and colours: as the terminal and JSON have them ---
  let decimals = data.decimals, scale = data.scale, shown = data.pictures, values = new Map();
  function format(v) { const text = Math.abs(v).toFixed(decimals);
    return data.signed && /[1-9]/.test(text) ? (v < 0 ? '-' : '+') + text : text; }
  function tint(v) { const s = Math.max(-1, Math.min(1, v / scale)); return [s > 0 ? FOR : AGAINST, Math.abs(s).toFixed(3)]; }
  function colour(element, v) { const [rgb, share] = tint(v);
    element.classList.add('tint'); element.style.setProperty('--t', rgb.join(' ')); element.style.setProperty('--a', share); }
  function paint(canvas, cells) { const g = canvas.getContext('2d'); canvas.width = cells[0].length; canvas.height = cells.length;
    cells.forEach((line, r) => line.forEach((v, c) => { const [rgb, share] = tint(v); g.fillStyle = 'rgba(' + rgb.join(',') + ',' + share * 0.85 + ')'; g.fillRect(c, r, 1, 1); })); }
  function inBox(cells, [left, top, right, bottom]) { let sum = 0;
    for (let r = Math.max(0, Math.floor(top)); r < Math.min(cells.length, bottom); r++)
      for (let c = Math.max(0, Math.floor(left)); c < Math.min(cells[0].length, right); c++)
        sum += cells[r][c] * Math.max(0, Math.min(bottom, r + 1) - Math.max(top, r)) * Math.max(0, Math.min(right, c + 1) - Math.max(left, c));
    return sum; }
  const name = item => item.classList.contains('p') ? data.page_words[item.dataset.p].text : item.textContent;

  // --- which words weigh most ---
  let highlighted = [], at = -1, chosen = null;
  function list() {
    const size = item => Math.abs(values.get(item)), least = Math.max(1e-12, LEAST * Math.max(0, ...items.map(size)));
    // Numbers are rounded here, so the list that was written keeps its own order. Equals: texts first, then the page's words.
    const order = [...items.filter(item => !item.dataset.p), ...items.filter(item => item.dataset.p)];
    const top = chosen === null ? data.top_words.map(([kind, n]) => root.querySelector('.document .' + kind + '[data-' + (kind === 'w' ? 'n' : 'p') + '="' + n + '"]'))
      : order.filter(item => size(item) >= least).sort((a, b) => size(b) - size(a)).slice(0, TOP);
    items.forEach(item => item.classList.toggle('hi', top.includes(item)));
    highlighted = items.filter(item => top.includes(item)); at = -1;
    const place = one('.top'); if (!place) return;
    place.replaceChildren(...top.map(item => { const [entry, button, word, number] = ['li', 'button', 'bdi', 'b'].map(tag => document.createElement(tag));
      button.type = 'button'; number.textContent = format(values.get(item)); word.textContent = name(item); button.append(word, number); colour(button, values.get(item));
      button.addEventListener('click', () => { at = highlighted.indexOf(item); go(item); }); entry.append(button); return entry; }));
  }
  function show(row) {
    const m = data.matrix; values = new Map(); scale = data.scale; decimals = data.decimals; shown = data.pictures;
    if (row !== null) { shown = data.pictures.map((cells, p) => m.pictures[p] ? m.pictures[p][row] : cells); scale = m.scales[row]; decimals = m.decimals[row]; }
    texts.forEach(w => { const n = +w.dataset.n, column = row === null ? -1 : m.document.indexOf(n);
      if (row === null || column >= 0) values.set(w, row === null ? data.words[n] : m.values[row][column]); });
    seen.forEach(p => { const word = data.page_words[p.dataset.p];
      values.set(p, row === null ? word.relevance : inBox(shown[word.picture], word.cells));
      p.setAttribute('aria-label', word.text + ', ' + format(values.get(p))); });
    texts.forEach(w => { if (values.has(w)) colour(w, values.get(w)); });
    canvases.forEach((canvas, p) => paint(canvas, shown[p]));
    row_name.textContent = row === null ? '' : 'What answers "' + m.names[row] + '". Full colour is ' + scale.toFixed(decimals) + '. Select it again to go back.';
    list();
  }
  function select(element) { const row = data.matrix.query.indexOf(element.dataset.n); if (row < 0) return;
    all('.on').forEach(o => { o.classList.remove('on'); o.setAttribute('aria-pressed', 'false'); });
    chosen = chosen === row ? null : row;
    if (chosen !== null) { element.classList.add('on'); element.setAttribute('aria-pressed', 'true'); } show(chosen); }

  // --- the value next to the pointer ---
  function say(text, x, y) { tip.textContent = text; tip.hidden = false;
    const box = tip.getBoundingClientRect(), wide = document.documentElement.clientWidth, high = window.innerHeight;
    tip.style.left = Math.max(2, Math.min(x + 12, wide - box.width - 2)) + 'px';
    tip.style.top = (y + 16 + box.height > high ? Math.max(2, y - box.height - 10) : y + 16) + 'px'; }
  let anchor = null;  // what the keyboard has brought the value to: its element, and the value
  const hide = () => { tip.hidden = true; anchor = null; };
  function sayBelow(element, text) { anchor = [element, text]; const box = element.getBoundingClientRect(); say(text, box.left, box.bottom - 10); }
  const cellText = (p, r, c) => 'cell (' + r + ', ' + c + '): ' + format(shown[p][r][c]);
  const wordText = item => name(item) + ': ' + (values.has(item) ? format(values.get(item)) : format(data.words[item.dataset.n]));
  function cellAt(canvas, p, e) { const box = canvas.getBoundingClientRect(), cells = shown[p];
    const within = (v, count) => Math.max(0, Math.min(count - 1, Math.floor(v * count)));
    return [within((e.clientY - box.top) / box.height, cells.length), within((e.clientX - box.left) / box.width, cells[0].length)]; }
  ['pointermove', 'pointerdown'].forEach(kind => root.addEventListener(kind, e => {
    const word = e.target.closest('.w, .p'), pic = e.target.closest('.pic'), lines = [];
    if (word) lines.push(wordText(word));
    if (pic) { const canvas = pic.querySelector('canvas'), p = canvases.indexOf(canvas); lines.push(cellText(p, ...cellAt(canvas, p, e))); }
    if (lines.length) { anchor = null; say(lines.join(' · '), e.clientX, e.clientY); } else hide(); }));
  root.addEventListener('pointerleave', hide); root.addEventListener('focusout', hide);
  window.addEventListener('scroll', () => { if (anchor) sayBelow(...anchor); else hide(); }, { passive: true, capture: true });

  // --- words by keyboard ---
  function go(item) { const group = item.parentElement;
    all('[tabindex="0"]', group).forEach(other => other.tabIndex = -1); item.tabIndex = 0;
    item.focus({ preventScroll: true }); item.scrollIntoView({ block: 'nearest', inline: 'nearest' }); tell(item); }
  const tell = item => sayBelow(item, wordText(item));
  function walk(group, e) { const members = all('.w, .p', group), place = members.indexOf(e.target); if (place < 0) return;
    const flipped = getComputedStyle(group).direction === 'rtl' ? -1 : 1;
    const step = { ArrowRight: flipped, ArrowLeft: -flipped, ArrowDown: 1, ArrowUp: -1 }[e.key];
    const to = e.key === 'Home' ? 0 : e.key === 'End' ? members.length - 1 : step ? place + step : -1;
    if (members[to]) { e.preventDefault(); go(members[to]); } else if (step) e.preventDefault(); }
  all('.text, .pagewords').forEach(group => { const first = group.querySelector('.w, .p'); if (!first) return;
    first.tabIndex = 0;
    group.addEventListener('keydown', e => walk(group, e));
    group.addEventListener('focusin', e => { const item = e.target.closest('.w, .p'); if (!item) return;
      if (item.classList.contains('w')) item.setAttribute('aria-describedby', tip.id);
      else all('.p', group).forEach(other => other.setAttribute('aria-selected', other === item));
      if (highlighted.includes(item)) at = highlighted.indexOf(item);
      if (item.matches(':focus-visible')) tell(item); }); });
  function jump(step) { if (!highlighted.length) { said.textContent = 'There is no highlighted word.'; return; }
    at = at < 0 && step < 0 ? highlighted.length - 1 : (at + step + highlighted.length) % highlighted.length;
    const item = highlighted[at]; go(item);
    said.textContent = 'Highlighted word ' + (at + 1) + ' of ' + highlighted.length + ': ' + wordText(item); }
  root.m0jump = jump;
  all('.next').forEach(b => b.addEventListener('click', () => jump(1))); all('.previous').forEach(b => b.addEventListener('click', () => jump(-1)));
  root.addEventListener('keydown', e => { if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.key === 'n') jump(1); else if (e.key === 'p') jump(-1); else if (e.key === 'Escape') hide(); });

  // --- cells by keyboard ---
  canvases.forEach((canvas, p) => { let r = 0, c = 0; const pic = canvas.parentElement, cursor = document.createElement('div');
    cursor.className = 'cursor'; cursor.hidden = true; pic.append(cursor); canvas.tabIndex = 0;
    function mark() { const rows = shown[p].length, columns = shown[p][0].length; cursor.hidden = false;
      Object.assign(cursor.style, { left: c / columns * 100 + '%', top: r / rows * 100 + '%', width: 100 / columns + '%', height: 100 / rows + '%' });
      cursor.scrollIntoView({ block: 'nearest', inline: 'nearest' });
      sayBelow(cursor, cellText(p, r, c)); said.textContent = cellText(p, r, c); }
    canvas.addEventListener('focus', () => { if (canvas.matches(':focus-visible')) mark(); });
    canvas.addEventListener('blur', () => { cursor.hidden = true; });
    canvas.addEventListener('keydown', e => { const rows = shown[p].length, columns = shown[p][0].length;
      const to = { ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowDown: [r + 1, c], ArrowUp: [r - 1, c], Home: [r, 0], End: [r, columns - 1] }[e.key];
      if (!to) return; e.preventDefault(); [r, c] = [Math.max(0, Math.min(rows - 1, to[0])), Math.max(0, Math.min(columns - 1, to[1]))]; mark(); }); });

  // --- a word or picture of the query: what answers it ---
  if (data.matrix) all('.query .w, .query .pic').forEach(element => {
    const key = element.classList.contains('pic') ? element.querySelector('canvas') : element;
    element.setAttribute('aria-pressed', 'false'); if (element === key) element.setAttribute('role', 'button');
    element.addEventListener('click', () => select(element));
    key.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); select(element); } }); });

  // --- how strong the heat map is, whether pictures are grey, how large they are ---
  all('input[type=range]').forEach(bar => bar.addEventListener('input', () => root.style.setProperty('--heat', bar.value / 100)));
  all('input.togrey').forEach(box => box.addEventListener('change', () => root.classList.toggle('grey', box.checked)));
  all('.zoom').forEach(button => { button.hidden = false; button.addEventListener('click', () => {
    const full = button.closest('figure').querySelector('.frame').classList.toggle('full'); button.setAttribute('aria-pressed', full); }); });
  show(null);
})
