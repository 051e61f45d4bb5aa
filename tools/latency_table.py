"""The command ``mmgfp latency-table``, from a clone."""

from mmgfp.commands.latency_table import main

if __name__ == '__main__':
    main()
