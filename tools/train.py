"""The command ``mmgfp train``, from a clone."""

from mmgfp.commands.train import main

if __name__ == '__main__':
    main()
