"""What tests share: twins, tiny models, fakes."""
