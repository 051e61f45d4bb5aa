"""The command ``mmgfp groups``, from a clone."""

from mmgfp.commands.groups import main

if __name__ == '__main__':
    main()
