"""``python -m composer_attn`` and ``composer -n 8 -m composer_attn``: the composer-attn command."""

import sys

from composer_attn.errors import MissingExtraError
from composer_attn.extras import naming_the_extra

_NO_LIBRARY = 2


def main() -> None:
    """Run the ``composer-attn`` command; a missing library is reported in one line, exit code 2."""
    try:
        with naming_the_extra("this command"):
            from composer_attn.cli import app

            app(prog_name="composer-attn")
    except MissingExtraError as error:
        print(f"composer-attn: {error}", file=sys.stderr)
        sys.exit(_NO_LIBRARY)


if __name__ == "__main__":
    main()
