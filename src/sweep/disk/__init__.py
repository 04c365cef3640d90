"""What lies on disk: generations (`journal`), scored points (`archive`), what is published (`ledger`), the `lease`."""
