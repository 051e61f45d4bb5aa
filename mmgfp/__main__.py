"""``python -m mmgfp`` is the command ``mmgfp``."""

from .commands.main import main

if __name__ == '__main__':
    main()
