"""The subcommands of ``ldmprobe``, a module each: ``run(argv)``, where ``argv[0]`` is the command's name."""
