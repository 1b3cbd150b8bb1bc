"""``python -m composer_attn`` and ``composer -n 8 -m composer_attn``: the composer-attn command."""

from composer_attn.cli import app

app(prog_name="composer-attn")
