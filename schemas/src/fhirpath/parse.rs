//! Reads an expression: the grammar of FHIRPath 2.0.0, by how tightly its signs bind.

use super::Fault;
use super::functions::{self, Function};
use super::item::{SYSTEM, Type, Value};
use super::moment::Calendar;
use super::quantity::{Quantity, Unit};
use super::strings;
use super::syntax::{Expr, OPERATORS, Operator, TYPED_BINDS, TypedBy, What};
use super::token::{self, Lexeme, Token};
use crate::fhir::r4;
use regex::Regex;
use std::borrow::Cow;

/// The deepest nesting of an expression.
const DEPTH_MAX: usize = 64;

/// The most signs and points of an expression: a row of them nests as deep as it is long. R4's longest has some 200.
const LINKS_MAX: usize = 500;

/// Reads an expression.
pub(super) fn read(text: &str) -> Result<Expr, Fault> {
    let tokens = token::read(text)?;
    let mut parser = Parser { tokens: &tokens, next: 0, end: text.len(), depth: 0, links: 0 };
    let expr = parser.expression(0)?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => Err(Fault::new(token.at, "expected the end of the expression".to_owned())),
    }
}

struct Parser<'t> {
    tokens: &'t [Token],
    next: usize,
    end: usize,
    depth: usize,
    links: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    /// Where the next word or sign stands.
    fn at(&self) -> usize {
        self.peek().map_or(self.end, |token| token.at)
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token { what: Lexeme::Sign(found), .. }) if *found == sign)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Fault> {
        if self.take_sign(sign) { Ok(()) } else { Err(Fault::new(self.at(), format!("expected {sign}"))) }
    }

    /// Counts a sign or a point.
    fn link(&mut self, at: usize) -> Result<(), Fault> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Fault::new(at, format!("more than {LINKS_MAX} signs and points")));
        }
        Ok(())
    }

    /// An expression whose signs bind at least so tightly.
    fn expression(&mut self, tightness: u8) -> Result<Expr, Fault> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::new(self.at(), format!("nested deeper than {DEPTH_MAX}")));
        }
        let mut left = self.signed()?;
        loop {
            let at = self.at();
            if let Some(by) = self.typed_operator().filter(|_| TYPED_BINDS >= tightness) {
                self.next += 1;
                let name = self.type_name()?;
                left = Expr { at, what: What::Typed { of: Some(Box::new(left)), by, name } };
            } else if let Some((operator, binds)) = self.operator().filter(|(_, binds)| *binds >= tightness) {
                self.next += 1;
                let right = self.expression(binds + 1)?;
                left = Expr { at, what: What::Binary(operator, Box::new(left), Box::new(right)) };
            } else {
                break;
            }
            self.link(at)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn operator(&self) -> Option<(Operator, u8)> {
        let found = match &self.peek()?.what {
            Lexeme::Sign(sign) => *sign,
            Lexeme::Word(word) => word.as_str(),
            _ => return None,
        };
        OPERATORS.iter().find(|(name, ..)| *name == found).map(|(_, operator, binds)| (*operator, *binds))
    }

    fn typed_operator(&self) -> Option<TypedBy> {
        match &self.peek()?.what {
            Lexeme::Word(word) if word == "is" => Some(TypedBy::Is),
            Lexeme::Word(word) if word == "as" => Some(TypedBy::As),
            _ => None,
        }
    }

    /// A sign of a number before a path: it binds less tightly than what follows the path's points.
    fn signed(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        let negative = self.take_sign("-");
        if !negative && !self.take_sign("+") {
            return self.path();
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::new(at, format!("nested deeper than {DEPTH_MAX}")));
        }
        let of = Box::new(self.signed()?);
        self.depth -= 1;
        Ok(Expr { at, what: if negative { What::Negative(of) } else { What::Positive(of) } })
    }

    /// A term and what follows it: `.name`, `.function()`, `[0]`.
    fn path(&mut self) -> Result<Expr, Fault> {
        let mut of = self.term()?;
        loop {
            let at = self.at();
            if self.take_sign(".") {
                of = self.invocation(of)?;
            } else if self.take_sign("[") {
                let index = self.expression(0)?;
                self.expect("]")?;
                of = Expr { at, what: What::At(Box::new(of), Box::new(index)) };
            } else {
                return Ok(of);
            }
            self.link(at)?;
        }
    }

    fn invocation(&mut self, of: Expr) -> Result<Expr, Fault> {
        let at = self.at();
        let what = match self.peek().map(|token| token.what.clone()) {
            Some(Lexeme::Word(name) | Lexeme::Quoted(name)) => {
                self.next += 1;
                if self.is_sign("(") {
                    return self.call(at, &name, Some(Box::new(of)));
                }
                What::Member(Box::new(of), name)
            }
            _ => return Err(Fault::new(at, "expected a name after the point".to_owned())),
        };
        Ok(Expr { at, what })
    }

    fn term(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        let Some(token) = self.peek().cloned() else {
            return Err(Fault::new(at, "expected an expression".to_owned()));
        };
        self.next += 1;
        let what = match token.what {
            Lexeme::Sign("(") => {
                let inner = self.expression(0)?;
                self.expect(")")?;
                return Ok(inner);
            }
            Lexeme::Sign("{") => {
                self.expect("}")?;
                What::Empty
            }
            Lexeme::Sign(sign) => {
                return Err(Fault::new(at, format!("expected an expression before {sign}")));
            }
            Lexeme::Text(text) => What::Literal(Value::String(Cow::Owned(text))),
            Lexeme::Value(value) => What::Literal(self.with_unit(value)),
            Lexeme::Dollar("index") => What::Index,
            Lexeme::Dollar("total") => What::Total,
            Lexeme::Dollar(_) => What::This,
            Lexeme::Variable(name) => What::Variable(name),
            Lexeme::Word(word) if word == "true" => What::Literal(Value::Boolean(true)),
            Lexeme::Word(word) if word == "false" => What::Literal(Value::Boolean(false)),
            Lexeme::Word(name) | Lexeme::Quoted(name) => {
                if self.is_sign("(") {
                    return self.call(at, &name, None);
                }
                What::Start(name)
            }
        };
        Ok(Expr { at, what })
    }

    /// A number with the unit that follows it.
    fn with_unit(&mut self, value: Value<'static>) -> Value<'static> {
        let Some(number) = value.number() else { return value };
        let unit = match self.peek().map(|token| &token.what) {
            Some(Lexeme::Text(code)) => Unit::quoted(code),
            Some(Lexeme::Word(word)) => match Calendar::of_word(word) {
                Some(unit) => Unit::Calendar(unit, word.clone()),
                None => return value,
            },
            _ => return value,
        };
        self.next += 1;
        Value::Quantity(Box::new(Quantity { value: number, unit }))
    }

    fn call(&mut self, at: usize, name: &str, of: Option<Box<Expr>>) -> Result<Expr, Fault> {
        self.expect("(")?;
        let typed = match name {
            "is" => Some(TypedBy::Is),
            "as" => Some(TypedBy::As),
            "ofType" => Some(TypedBy::OfType),
            _ => None,
        };
        if let Some(by) = typed {
            let name = self.type_name()?;
            self.expect(")")?;
            return Ok(Expr { at, what: What::Typed { of, by, name } });
        }
        let known = functions::find(name).ok_or_else(|| functions::unknown(at, name))?;
        let mut arguments = Vec::new();
        if !self.is_sign(")") {
            arguments.push(self.expression(0)?);
            while self.take_sign(",") {
                arguments.push(self.expression(0)?);
            }
        }
        self.expect(")")?;
        if !(known.least..=known.most).contains(&arguments.len()) {
            let wants = if known.least == known.most {
                known.least.to_string()
            } else {
                format!("{} to {}", known.least, known.most)
            };
            return Err(Fault::new(at, format!("{name}() wants {wants} arguments, not {}", arguments.len())));
        }
        let pattern = compiled(known.function, &arguments)?;
        Ok(Expr { at, what: What::Call { of, function: known.function, arguments, pattern } })
    }

    /// `Patient`, `FHIR.Patient`, `System.String`, `HumanName`.
    fn type_name(&mut self) -> Result<Type, Fault> {
        let at = self.at();
        let mut names = vec![self.name()?];
        while self.take_sign(".") {
            names.push(self.name()?);
        }
        let system =
            |name: &str| SYSTEM.iter().find(|known| **known == name).map(|known| Type::System(known));
        let fhir = |name: &str| r4().type_def(name).map(Type::Fhir);
        let found = match names.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            // A type that FHIRPath does not have: nothing is of it.
            ["System", name] => Some(system(name).unwrap_or(Type::System("none"))),
            ["FHIR", name] => fhir(name),
            [name] => fhir(name).or_else(|| system(name)),
            parts => fhir(&parts.join(".")),
        };
        found.ok_or_else(|| {
            let known = r4().types().map(|of| of.name).chain(SYSTEM);
            let hint = super::nearest(&names.join("."), known);
            Fault::new(at, format!("no such type{hint}"))
        })
    }

    fn name(&mut self) -> Result<String, Fault> {
        let at = self.at();
        match self.peek().map(|token| token.what.clone()) {
            Some(Lexeme::Word(name) | Lexeme::Quoted(name)) => {
                self.next += 1;
                Ok(name)
            }
            _ => Err(Fault::new(at, "expected the name of a type".to_owned())),
        }
    }
}

/// A pattern that stands in the expression is read with it, once.
fn compiled(function: Function, arguments: &[Expr]) -> Result<Option<Box<Regex>>, Fault> {
    let (Function::Matches | Function::MatchesFull | Function::ReplaceMatches) = function else {
        return Ok(None);
    };
    let Some(Expr { at, what: What::Literal(Value::String(pattern)) }) = arguments.first() else {
        return Ok(None);
    };
    let pattern = strings::pattern(pattern, function).map_err(|why| Fault::new(*at, why))?;
    Ok(Some(Box::new(pattern)))
}
