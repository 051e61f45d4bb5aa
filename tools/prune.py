"""The command ``mmgfp prune``, from a clone."""

from mmgfp.commands.prune import main

if __name__ == '__main__':
    main()
