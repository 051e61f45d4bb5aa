"""The command ``mmgfp test``, from a clone."""

from mmgfp.commands.test import main

if __name__ == '__main__':
    main()
