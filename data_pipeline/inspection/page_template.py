"""The page as a Jinja template; everything that is filled in is escaped."""

TEMPLATE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<div class="soft small">{{ folder }} · chat template {{ chat_template }} · manifest
<span class="mono">{{ hash[:12] }}</span></div>
<div class="totals">
{%- for value, label in totals %}
<div class="box"><b>{{ value }}</b><span class="soft small">{{ label }}</span></div>
{%- endfor %}
</div>
{%- for line in lines %}
<div class="small">{{ line }}</div>
{%- endfor %}

<h2>Sources</h2>
<div class="box scroll">
<table>
<thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div>
{%- if left_out %}
<p class="small">Left out: {{ left_out | join("; ") }}</p>
{%- endif %}
{%- if changed %}
<p class="small">Accepted with a change: {{ changed | join("; ") }}</p>
{%- endif %}

<h2>Distributions</h2>
<div class="charts">
{%- for chart in charts %}
<a class="box" href="{{ chart.href }}"><img src="{{ chart.data }}" alt="{{ chart.name }}"></a>
{%- endfor %}
</div>
<p class="small">Also in this folder: <a href="{{ contact_sheet }}">{{ contact_sheet }}</a>,
the samples below at a glance.</p>

<h2>{{ samples | length }} random samples (seed {{ seed }})</h2>
<ul class="index">
{%- for sample in samples %}
<li><a href="#sample-{{ sample.view.index }}">{{ sample.view.id }}</a>
<span class="soft">{{ sample.view.source }}</span></li>
{%- endfor %}
</ul>
<div class="legend box">
{%- if with_tokens %}
<span><span class="t learnt">learnt</span> answers and their end token</span>
<span><span class="t instruction">instruction</span> questions after the last image</span>
<span><span class="t special x">special</span> special tokens; <span class="t learnt x">green</span> if learnt</span>
<span><span class="t other">other</span> the template's words, other questions</span>
{%- else %}
<span class="soft">Without a tokenizer, text is shown by turns.</span>
{%- endif %}
<span><span class="image">image</span> its visual tokens stand here</span>
<span class="soft">Pink lines: tiles. Striped: padding of the canvas (black in training).</span>
</div>
{%- for sample in samples %}
{%- set view = sample.view %}
<article class="sample box" id="sample-{{ view.index }}">
<header>
<h3>{{ view.id }}</h3><span>{{ view.source }}</span>
<span class="soft small">{{ view.text_tokens | thousands }} text tokens, {{ view.loss_tokens | thousands }} learnt
{%- if view.images %} · {{ view.visual_tokens | thousands }} visual tokens,
{{ view.kept_tokens | thousands }} expected{% endif %}</span>
<span class="soft mono">{{ view.shard }}</span>
</header>
<div class="body{{ '' if view.images else ' text-only' }}">
{%- if view.images %}
<div class="images{{ ' several' if view.images | length > 1 }}">
{%- for image in sample.images %}
<figure><img src="{{ image.data }}" width="{{ image.width }}" alt="image {{ loop.index }}">
<figcaption>{% for line in image.caption %}<div>{{ line }}</div>{% endfor %}</figcaption></figure>
{%- endfor %}
</div>
{%- endif %}
<div class="text">
{%- if with_tokens %}
<div class="tokens">
{%- for token in sample.tokens -%}
{%- if token.chip -%}
<span class="image" title="id {{ token.ids }}">{{ token.text }}</span>
{%- else -%}
<span class="t {{ token.classes }}" title="id {{ token.ids }}">{{ token.text }}</span>
{%- endif -%}
{%- endfor -%}
</div>
{%- else %}
{%- for turn in sample.turns %}
<div class="turn {{ turn.role }}"><b>{{ turn.role }}</b>
{%- for part in turn.parts -%}
{%- if part.chip %}<span class="image">{{ part.text }}</span>{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}
</div>
{%- endfor %}
{%- endif %}
</div>
</div>
</article>
{%- endfor %}
</main>
</body>
</html>
"""
