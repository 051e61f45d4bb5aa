"""The command ``mmgfp report``, from a clone."""

from mmgfp.commands.report import main

if __name__ == '__main__':
    main()
