def write_report(run_dir, out=None):
    return run_dir
