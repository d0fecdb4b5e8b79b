"""The interceptors of every call: one behaviour a file, put in order by `chain`."""
