"""The command ``mmgfp export``, from a clone."""

from mmgfp.commands.export import main

if __name__ == '__main__':
    main()
