"""The command ``mmgfp benchmark``, from a clone."""

from mmgfp.commands.benchmark import main

if __name__ == '__main__':
    main()
