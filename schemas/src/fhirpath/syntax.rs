//! The shape of an expression once it was read.

use super::functions::Function;
use super::item::{Type, Value};
use regex::Regex;
use smallvec::SmallVec;

/// An expression, or a part of one, with where it stands in the text.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) at: usize,
    pub(super) what: What,
}

/// What a part of an expression is.
#[derive(Debug)]
pub(super) enum What {
    /// `{}`
    Empty,
    /// `5`, `'text'`, `@2014`, `4 days`
    Literal(Value<'static>),
    /// `$this`
    This,
    /// `$index`
    Index,
    /// `$total`
    Total,
    /// `%resource`
    Variable(String),
    /// The first name of a path: an element of what stands there, or its type.
    Start(String),
    /// `name` after a point.
    Member(Box<Expr>, String),
    /// `list[0]`
    At(Box<Expr>, Box<Expr>),
    /// A function of what stands before the point, or of what is looked at.
    Call {
        of: Option<Box<Expr>>,
        function: Function,
        arguments: Vec<Expr>,
        /// The pattern of `matches`, if it stands in the expression.
        pattern: Option<Box<Regex>>,
    },
    /// `is`, `as` and `ofType`.
    Typed { of: Option<Box<Expr>>, by: TypedBy, name: Type },
    /// `-5`
    Negative(Box<Expr>),
    /// `+5`
    Positive(Box<Expr>),
    /// Two with a sign between them.
    Binary(Operator, Box<Expr>, Box<Expr>),
}

impl Expr {
    /// What is worked out first, and what this part then does something with.
    pub(super) fn left(&self) -> Option<&Expr> {
        match &self.what {
            What::Member(of, _)
            | What::At(of, _)
            | What::Negative(of)
            | What::Positive(of)
            | What::Binary(_, of, _) => Some(of),
            What::Call { of, .. } | What::Typed { of, .. } => of.as_deref(),
            What::Empty
            | What::Literal(_)
            | What::This
            | What::Index
            | What::Total
            | What::Variable(_)
            | What::Start(_) => None,
        }
    }

    /// This part and those on its left, the outermost first: a row of signs or points is as deep as it is long, so it is
    /// walked in a loop.
    pub(super) fn spine(&self) -> SmallVec<[&Expr; 8]> {
        std::iter::successors(Some(self), |expr| expr.left()).collect()
    }
}

/// What is asked about a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TypedBy {
    Is,
    /// One item at most, unless the dialect is that of R4's own expressions.
    As,
    OfType,
}

/// A sign between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Multiply,
    Divide,
    Div,
    Mod,
    Add,
    Subtract,
    Join,
    Union,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
    Equivalent,
    NotEquivalent,
    In,
    Contains,
    And,
    Or,
    Xor,
    Implies,
}

/// Signs with how tightly they bind: the higher, the tighter. `is` and `as` bind as [`TYPED_BINDS`].
pub(super) const OPERATORS: [(&str, Operator, u8); 22] = [
    ("*", Operator::Multiply, 10),
    ("/", Operator::Divide, 10),
    ("div", Operator::Div, 10),
    ("mod", Operator::Mod, 10),
    ("+", Operator::Add, 9),
    ("-", Operator::Subtract, 9),
    ("&", Operator::Join, 9),
    ("|", Operator::Union, 7),
    ("<", Operator::Less, 6),
    ("<=", Operator::LessOrEqual, 6),
    (">", Operator::Greater, 6),
    (">=", Operator::GreaterOrEqual, 6),
    ("=", Operator::Equal, 5),
    ("!=", Operator::NotEqual, 5),
    ("~", Operator::Equivalent, 5),
    ("!~", Operator::NotEquivalent, 5),
    ("in", Operator::In, 4),
    ("contains", Operator::Contains, 4),
    ("and", Operator::And, 3),
    ("or", Operator::Or, 2),
    ("xor", Operator::Xor, 2),
    ("implies", Operator::Implies, 1),
];

/// How tightly `is` and `as` bind.
pub(super) const TYPED_BINDS: u8 = 8;
