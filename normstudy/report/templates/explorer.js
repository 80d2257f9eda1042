// The explorer: a scatter plot of runs whose axes, colour and panels are chosen by the controls. Needs vegaEmbed.
(() => {
  const source = document.getElementById('explorer-data');
  if (!source || typeof vegaEmbed === 'undefined') return;
  const { fields, rows, links, marks, colours } = JSON.parse(source.textContent);
  const control = name => document.getElementById(`explorer-${name}`);
  const byName = Object.fromEntries(fields.map(field => [field.name, field]));
  const data = rows.map((row, index) => {
    const point = Object.fromEntries(fields.map((field, place) => [field.name, row[place]]));
    const text = fields.filter(field => field.kind === 'nominal').map(field => point[field.name]).join(' ');
    return { ...point, ...(links[index] ? { href: links[index] } : {}), text: `${text} ${marks[index]}`.toLowerCase() };
  });
  const axis = (name, scale) => ({
    field: name, type: byName[name].kind, title: byName[name].title, scale: scale ?? { zero: false },
  });

  function colour(name, values) {
    if (!name) return { value: '#0072b2' };
    const found = { field: name, type: byName[name].kind, title: byName[name].title };
    if (byName[name].kind === 'quantitative') return { ...found, scale: { scheme: 'viridis' } };
    const domain = [...new Set(values.map(value => value[name]))].sort();
    if (domain.every(value => value in colours)) return { ...found, scale: { domain, range: domain.map(value => colours[value]) } };
    return { ...found, scale: { domain, scheme: 'tableau20' } };
  }

  function draw() {
    const [x, y, hue, facet] = ['x', 'y', 'colour', 'facet'].map(name => control(name).value);
    const words = wordsOf(control('filter'));
    const isLog = control('logx').checked;
    const chosen = data.filter(point => point[x] !== null && point[y] !== null && hasWords(point.text, words));
    const values = chosen.filter(point => !isLog || point[x] > 0);
    const left = chosen.length - values.length;
    control('count').textContent = `${values.length} of ${data.length} runs` + (left ? `; ${left} with x ≤ 0 left out` : '');
    if (!values.length) {
      document.getElementById('explorer-plot').replaceChildren('No run fits the filter.');
      return;
    }
    const shown = [...new Set([...fields.filter(field => field.kind === 'nominal').map(field => field.name), x, y])];
    const unit = {
      mark: { type: 'point', filled: true, size: 60, opacity: 0.75, cursor: links.some(Boolean) ? 'pointer' : 'default' },
      encoding: {
        x: { ...axis(x, isLog ? { type: 'log' } : null), axis: { tickCount: 6 } }, y: axis(y, null), color: colour(hue, values),
        ...(links.some(Boolean) ? { href: { field: 'href' } } : {}),
        tooltip: shown.map(name => ({ field: name, type: byName[name].kind, title: byName[name].title })),
      },
    };
    const size = facet ? { width: 300, height: 260 } : { width: 720, height: 420 };
    const spec = {
      $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
      data: { values },
      ...(facet ? { facet: { field: facet, type: 'nominal', title: byName[facet].title }, columns: 3, spec: { ...size, ...unit } }
                : { ...size, ...unit }),
    };
    const options = {
      renderer: 'svg', tooltip: { theme: matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light' },
      config: { background: 'transparent' }, loader: { target: '_blank' },
      actions: { export: true, source: false, compiled: false, editor: false },
    };
    vegaEmbed('#explorer-plot', spec, options);
  }

  control('controls').addEventListener('submit', event => event.preventDefault());
  control('controls').addEventListener('input', draw);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  draw();
})();
