"""Operations that networks are made of, each with forms for several platforms."""
