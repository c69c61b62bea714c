//! Enums whose values have names: what messages, metrics and the log call them by.

/// Defines an enum with the name of each value beside it.
macro_rules! named_enum {
    (
        $(#[$meta:meta])*
        pub enum $enum:ident {
            $($(#[$value_meta:meta])* $value:ident = $name:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $enum {
            $($(#[$value_meta])* $value,)*
        }

        impl $enum {
            /// All of them, in the order of their numbers.
            pub const ALL: [$enum; [$($name),*].len()] = [$($enum::$value),*];

            /// Its name in messages, metrics and the log.
            pub fn name(self) -> &'static str {
                match self {
                    $($enum::$value => $name,)*
                }
            }
        }
    };
}

pub(crate) use named_enum;
