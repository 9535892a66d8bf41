from memtx.cli import main

main()
