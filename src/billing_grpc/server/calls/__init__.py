"""What happens around every call: one behaviour a file, put in order by `chain`."""
