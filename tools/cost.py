"""The command ``mmgfp cost``, from a clone."""

from mmgfp.commands.cost import main

if __name__ == '__main__':
    main()
