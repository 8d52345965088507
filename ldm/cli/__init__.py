"""The command line: `main` is the command `artfusion`, each of the others one of its sub-commands,
`program` and `options` what they share."""
