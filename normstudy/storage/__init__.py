"""The run directory, saved states, probe dicts, and the table of runs. Every file is complete or absent."""

from normstudy.storage.files import (
    is_whole_json,
    read_csv,
    read_json,
    read_torch,
    remove_leftovers,
    write_bytes,
    write_csv,
    write_json,
    write_torch,
)
from normstudy.storage.measure_columns import MEASURE_COLUMNS, NEURAL_COLLAPSE_KEYS, OF_CLASS_SIMILARITY
from normstudy.storage.probe_files import (
    ACTIVATION_KEYS,
    CONV_KEYS,
    PROBE_KEYS,
    WEIGHT_KEYS,
    effective_rates,
    load_probes,
    load_probes_of_whole_batches,
    read_probes_summary,
    save_probes,
    summarize_probes,
)
from normstudy.storage.provenance import add_to_history, git_commit, history_entry, package_versions
from normstudy.storage.recorded_files import (
    are_metrics_whole,
    changed_files,
    recorded_digest,
    restore_metrics,
    save_checkpoint,
)
from normstudy.storage.results_columns import SETTING_COLUMNS
from normstudy.storage.results_table import collect_table, update_table
from normstudy.storage.run_directory import (
    MEASUREMENTS,
    METRICS_COLUMNS,
    USUAL_MATRIX,
    RunDirectory,
    directory_of,
    identity_hash,
    measurement_name,
    run_name,
)
from normstudy.storage.run_owner import Owner, is_alive, read_owner, write_owner
from normstudy.storage.run_settings import open_run, read_summary, reads_same_folder, stored_config
from normstudy.storage.table_files import read_table
from normstudy.storage.training_state import load_state, prepare_run, save_state

__all__ = [
    "ACTIVATION_KEYS",
    "CONV_KEYS",
    "MEASUREMENTS",
    "MEASURE_COLUMNS",
    "METRICS_COLUMNS",
    "NEURAL_COLLAPSE_KEYS",
    "OF_CLASS_SIMILARITY",
    "PROBE_KEYS",
    "SETTING_COLUMNS",
    "USUAL_MATRIX",
    "WEIGHT_KEYS",
    "Owner",
    "RunDirectory",
    "add_to_history",
    "are_metrics_whole",
    "changed_files",
    "collect_table",
    "directory_of",
    "effective_rates",
    "git_commit",
    "history_entry",
    "identity_hash",
    "is_alive",
    "is_whole_json",
    "load_probes",
    "load_probes_of_whole_batches",
    "load_state",
    "measurement_name",
    "open_run",
    "package_versions",
    "prepare_run",
    "read_csv",
    "read_json",
    "read_owner",
    "read_probes_summary",
    "read_summary",
    "read_table",
    "read_torch",
    "reads_same_folder",
    "recorded_digest",
    "remove_leftovers",
    "restore_metrics",
    "run_name",
    "save_checkpoint",
    "save_probes",
    "save_state",
    "stored_config",
    "summarize_probes",
    "update_table",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_owner",
    "write_torch",
]
