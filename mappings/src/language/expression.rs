//! The expressions of a mapping: paths, literals, comparisons and calls, read into a tree.
//!
//! The language is small and total: there are no loops, no definitions, and every operation answers on every input.

/// An expression as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Path(PathExpr),
    Text(String),
    Number(i64),
    Call { name: String, args: Vec<Expr>, at: usize },
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Comparison, Box<Expr>, Box<Expr>),
    In { negated: bool, item: Box<Expr>, list: Vec<Expr> },
    Coalesce(Box<Expr>, Box<Expr>),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A path: where it begins, and the way down from there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PathExpr {
    pub(crate) root: Root,
    /// Which repetitions of a field are meant.
    pub(crate) filter: Option<Filter>,
    /// Component and subcomponent, as far as given.
    pub(crate) steps: Vec<u16>,
    /// The members on the way down from a record.
    pub(crate) members: Vec<Member>,
    /// Where it begins in the text, in characters from 0.
    pub(crate) at: usize,
}

/// A member of a record on a path, and which of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) filter: Option<Filter>,
}

/// Where a path begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Root {
    /// `CgmReading.value`, `it.CgmReading.value`: a record around.
    Record { item: bool, name: String },
    /// `PID-3`, `order.OBR-7`, `it.OBX-29`; without a field the segment itself.
    Segment { alias: Option<String>, name: String, field: Option<u16> },
    /// `CX.4`, the element on which a type map is called.
    Type(String),
    /// The current item.
    It,
    /// The current level of a chain.
    Level,
    /// `with.x`, `option.x`, `sender.x`, `context.x`, and `level.type`, `level.id`.
    Name(&'static str, String),
}

/// Which repetitions a path means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filter {
    All,
    Number(u16),
    Where(Box<Expr>),
}

/// What is wrong in an expression: the character (from 0) and a sentence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wrong {
    pub(crate) at: usize,
    pub(crate) text: String,
}

/// Reads an expression.
pub(crate) fn parse(text: &str) -> Result<Expr, Wrong> {
    let mut parser = Parser { tokens: lex(text)?, next: 0, end: text.chars().count(), depth: 0 };
    let expr = parser.coalesce()?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => {
            Err(parser.wrong(format!("expected the end of the expression, found {}", token.name())))
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Number(String),
    Text(String),
    Sign(&'static str),
}

impl Token {
    fn name(&self) -> String {
        match self {
            Token::Word(word) => format!("`{word}`"),
            Token::Number(number) => format!("`{number}`"),
            Token::Text(_) => "a text".to_owned(),
            Token::Sign(sign) => format!("`{sign}`"),
        }
    }
}

const SIGNS: [&str; 16] =
    ["==", "!=", "<=", ">=", "??", "<", ">", "(", ")", "[", "]", ",", ".", "-", "*", "="];

/// A token, where it begins, and whether a blank stands before it.
struct Lexed {
    token: Token,
    at: usize,
    glued: bool,
}

fn lex(text: &str) -> Result<Vec<Lexed>, Wrong> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut glued) = (0, false);
    while let Some(&c) = chars.get(at) {
        let start = at;
        if c.is_whitespace() {
            at += 1;
            glued = false;
            continue;
        }
        let take_while = |mut at: usize, ok: fn(char) -> bool| {
            let mut word = String::new();
            while let Some(&c) = chars.get(at).filter(|c| ok(**c)) {
                word.push(c);
                at += 1;
            }
            (word, at)
        };
        let token = if c.is_ascii_alphabetic() || c == '_' {
            let (word, end) = take_while(at, |c| c.is_ascii_alphanumeric() || c == '_');
            at = end;
            Token::Word(word)
        } else if c.is_ascii_digit() {
            let (number, end) = take_while(at, |c| c.is_ascii_digit());
            at = end;
            Token::Number(number)
        } else if c == '\'' {
            let mut text = String::new();
            at += 1;
            loop {
                match (chars.get(at), chars.get(at + 1)) {
                    (Some('\''), Some('\'')) => {
                        text.push('\'');
                        at += 2;
                    }
                    (Some('\''), _) => break,
                    (Some('\\'), Some('n')) => {
                        text.push('\n');
                        at += 2;
                    }
                    (Some(&c), _) => {
                        text.push(c);
                        at += 1;
                    }
                    (None, _) => {
                        return Err(Wrong { at: start, text: "this text has no closing '".to_owned() });
                    }
                }
            }
            at += 1;
            Token::Text(text)
        } else {
            let sign = SIGNS
                .iter()
                .find(|sign| sign.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c)));
            let Some(sign) = sign else {
                let hint = if c == '"' { "; a text stands between single quotes" } else { "" };
                return Err(Wrong { at, text: format!("`{c}` has no meaning here{hint}") });
            };
            at += sign.len();
            Token::Sign(sign)
        };
        tokens.push(Lexed { token, at: start, glued });
        glued = true;
    }
    Ok(tokens)
}

/// The deepest nesting of brackets taken.
const DEPTH_MAX: usize = 32;

struct Parser {
    tokens: Vec<Lexed>,
    next: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|lexed| &lexed.token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |lexed| lexed.at)
    }

    fn wrong(&self, text: impl Into<String>) -> Wrong {
        Wrong { at: self.at(), text: text.into() }
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(s)) if *s == sign);
        self.next += usize::from(found);
        found
    }

    /// A sign that follows the token before it without a blank, as the parts of a path do.
    fn glued(&mut self, sign: &str) -> bool {
        self.tokens.get(self.next).is_some_and(|lexed| lexed.glued) && self.sign(sign)
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(w)) if w == word);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Wrong> {
        if self.sign(sign) {
            return Ok(());
        }
        let found = self.peek().map_or("the end".to_owned(), Token::name);
        Err(self.wrong(format!("expected `{sign}`, found {found}")))
    }

    fn coalesce(&mut self) -> Result<Expr, Wrong> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.wrong("nested too deeply"));
        }
        let mut left = self.or()?;
        while self.sign("??") {
            left = Expr::Coalesce(Box::new(left), Box::new(self.or()?));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn or(&mut self) -> Result<Expr, Wrong> {
        let mut left = self.and()?;
        while self.word("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, Wrong> {
        let mut left = self.not()?;
        while self.word("and") {
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr, Wrong> {
        let mut negated = false;
        while self.word("not") {
            negated = !negated;
        }
        let expr = self.comparison()?;
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn comparison(&mut self) -> Result<Expr, Wrong> {
        let left = self.primary()?;
        let comparison = match self.peek() {
            Some(Token::Sign("==")) => Comparison::Equal,
            Some(Token::Sign("!=")) => Comparison::Unequal,
            Some(Token::Sign("<=")) => Comparison::LessOrEqual,
            Some(Token::Sign(">=")) => Comparison::GreaterOrEqual,
            Some(Token::Sign("<")) => Comparison::Less,
            Some(Token::Sign(">")) => Comparison::Greater,
            Some(Token::Sign("=")) => return Err(self.wrong("`=` has no meaning here; did you mean `==`?")),
            Some(Token::Word(word)) if word == "in" => {
                self.next += 1;
                return self.membership(false, left);
            }
            Some(Token::Word(word)) if word == "not" => {
                self.next += 1;
                if !self.word("in") {
                    return Err(self.wrong("expected `in` after `not`"));
                }
                return self.membership(true, left);
            }
            _ => return Ok(left),
        };
        self.next += 1;
        Ok(Expr::Compare(comparison, Box::new(left), Box::new(self.primary()?)))
    }

    fn membership(&mut self, negated: bool, item: Expr) -> Result<Expr, Wrong> {
        self.expect("(")?;
        let mut list = vec![self.primary()?];
        while self.sign(",") {
            list.push(self.primary()?);
        }
        self.expect(")")?;
        Ok(Expr::In { negated, item: Box::new(item), list })
    }

    fn primary(&mut self) -> Result<Expr, Wrong> {
        let at = self.at();
        let Some(token) = self.peek().cloned() else {
            return Err(self.wrong("expected a value, found the end"));
        };
        self.next += 1;
        match token {
            Token::Text(text) => Ok(Expr::Text(text)),
            Token::Number(digits) => digits
                .parse()
                .map(Expr::Number)
                .map_err(|_| Wrong { at, text: "this number is too large".into() }),
            Token::Sign("(") => {
                let expr = self.coalesce()?;
                self.expect(")")?;
                Ok(expr)
            }
            Token::Word(name) if self.glued("(") => {
                let mut args = Vec::new();
                if !self.sign(")") {
                    loop {
                        // `each` before a path in a fold says what is done anyway: every repetition takes part.
                        self.word("each");
                        args.push(self.coalesce()?);
                        if !self.sign(",") {
                            break;
                        }
                    }
                    self.expect(")")?;
                }
                Ok(Expr::Call { name, args, at })
            }
            Token::Word(word) => self.path(word, at).map(Expr::Path),
            Token::Sign(_) => {
                self.next -= 1;
                Err(self.wrong(format!("expected a value, found {}", token.name())))
            }
        }
    }

    fn path(&mut self, word: String, at: usize) -> Result<PathExpr, Wrong> {
        let mut steps = Vec::new();
        let mut filter = None;
        let root = match word.as_str() {
            "it" => match (self.segment_after_dot(), self.record_after_dot()) {
                (Some(name), _) => self.segment(Some(word), name)?,
                (None, Some(name)) => Root::Record { item: true, name },
                (None, None) => Root::It,
            },
            "level" => match self.name_after_dot() {
                Some(name) => Root::Name("level", name),
                None => Root::Level,
            },
            "with" | "option" | "sender" | "context" | "wire" => {
                let head = ["with", "option", "sender", "context", "wire"]
                    .into_iter()
                    .find(|w| *w == word)
                    .unwrap_or("with");
                let Some(name) = self.name_after_dot() else {
                    return Err(self.wrong(format!("expected `.` and a name after `{word}`")));
                };
                Root::Name(head, name)
            }
            _ if is_segment_name(&word) && self.peek_glued("-") => self.segment(None, word)?,
            _ if is_type_name(&word) => Root::Type(word),
            _ if is_record_name(&word) => Root::Record { item: false, name: word },
            _ => match self.segment_after_dot() {
                Some(name) => self.segment(Some(word), name)?,
                None => {
                    return Err(Wrong {
                        at,
                        text: format!(
                            "`{word}` is no path: expected one such as PID-3, CX.4, it, order.OBR-7, with.x, Reading.value"
                        ),
                    });
                }
            },
        };
        if let Root::Record { .. } = root {
            let members = self.members()?;
            return Ok(PathExpr { root, filter, steps, members, at });
        }
        if self.glued("[") {
            filter = Some(self.filter()?);
        }
        while self.glued(".") {
            steps.push(self.small("a component or subcomponent, counted from 1")?);
        }
        if steps.len() > 2 {
            return Err(Wrong { at, text: "a path has at most a component and a subcomponent".to_owned() });
        }
        Ok(PathExpr { root, filter, steps, members: Vec::new(), at })
    }

    /// `.samples[Sample.level == '1'].at`
    fn members(&mut self) -> Result<Vec<Member>, Wrong> {
        let mut members = Vec::new();
        while self.glued(".") {
            let Some(Token::Word(name)) = self.peek().cloned() else {
                return Err(self.wrong("expected a member of the record"));
            };
            self.next += 1;
            let filter = if self.glued("[") { Some(self.filter()?) } else { None };
            members.push(Member { name, filter });
        }
        Ok(members)
    }

    fn filter(&mut self) -> Result<Filter, Wrong> {
        let filter = match (self.peek(), self.tokens.get(self.next + 1).map(|lexed| &lexed.token)) {
            (Some(Token::Sign("*")), _) => {
                self.next += 1;
                Filter::All
            }
            (Some(Token::Number(_)), Some(Token::Sign("]"))) => Filter::Number(self.small("a repetition")?),
            _ => Filter::Where(Box::new(self.coalesce()?)),
        };
        self.expect("]")?;
        Ok(filter)
    }

    fn peek_glued(&self, sign: &str) -> bool {
        self.tokens
            .get(self.next)
            .is_some_and(|lexed| lexed.glued && matches!(lexed.token, Token::Sign(s) if s == sign))
    }

    fn segment(&mut self, alias: Option<String>, name: String) -> Result<Root, Wrong> {
        let field = if self.glued("-") { Some(self.small("a field, counted from 1")?) } else { None };
        Ok(Root::Segment { alias, name, field })
    }

    fn segment_after_dot(&mut self) -> Option<String> {
        self.named_after_dot(is_segment_name)
    }

    fn record_after_dot(&mut self) -> Option<String> {
        self.named_after_dot(is_record_name)
    }

    fn named_after_dot(&mut self, is: fn(&str) -> bool) -> Option<String> {
        match self.tokens.get(self.next..self.next + 2) {
            Some([Lexed { token: Token::Sign("."), .. }, Lexed { token: Token::Word(name), .. }])
                if is(name) =>
            {
                let name = name.clone();
                self.next += 2;
                Some(name)
            }
            _ => None,
        }
    }

    fn name_after_dot(&mut self) -> Option<String> {
        match self.tokens.get(self.next..self.next + 2) {
            Some([Lexed { token: Token::Sign("."), .. }, Lexed { token: Token::Word(name), .. }]) => {
                let name = name.clone();
                self.next += 2;
                Some(name)
            }
            _ => None,
        }
    }

    fn small(&mut self, what: &str) -> Result<u16, Wrong> {
        let at = self.at();
        let Some(Token::Number(digits)) = self.peek() else {
            return Err(self.wrong(format!("expected {what}")));
        };
        let number = digits.parse::<u16>().ok().filter(|n| *n > 0);
        self.next += 1;
        number.ok_or_else(|| Wrong { at, text: format!("expected {what}") })
    }
}

/// Three characters, capital letters and digits, a letter first: `PID`, `IN1`, `ZPI`.
pub(crate) fn is_segment_name(word: &str) -> bool {
    word.len() == 3
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

/// A capital letter first, and small ones among what follows: `Reading`, `CgmReadings`.
pub(crate) fn is_record_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.contains(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Two or three capital letters and digits: `CX`, `XPN`, `SN`.
fn is_type_name(word: &str) -> bool {
    (2..=3).contains(&word.len())
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PathExpr {
        match parse(text) {
            Ok(Expr::Path(path)) => path,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_segments_types_items_and_aliases() {
        let segment = |alias: Option<&str>, name: &str, field| Root::Segment {
            alias: alias.map(str::to_owned),
            name: name.to_owned(),
            field,
        };
        assert_eq!(path("PID-3").root, segment(None, "PID", Some(3)));
        assert_eq!(path("PID-5.1.2").steps, [1, 2]);
        assert_eq!(path("order.OBR-7").root, segment(Some("order"), "OBR", Some(7)));
        assert_eq!(path("it.OBX-29").root, segment(Some("it"), "OBX", Some(29)));
        assert_eq!((path("CX.4.2").root, path("CX.4.2").steps), (Root::Type("CX".into()), vec![4, 2]));
        assert_eq!((path("it.2").root, path("it.2").steps), (Root::It, vec![2]));
        assert_eq!(path("with.use").root, Root::Name("with", "use".into()));
        assert_eq!(path("level.type").root, Root::Name("level", "type".into()));
        assert_eq!(path("PID-3[2].1").filter, Some(Filter::Number(2)));
        assert_eq!(path("NTE-3[*]").filter, Some(Filter::All));
        assert!(matches!(path("PID-3[CX.5 == 'MR']").filter, Some(Filter::Where(_))));
    }

    #[test]
    fn paths_go_down_by_the_members_of_records() {
        let found = path("Readings.records[2].device[Device.kind == 'cgm'].serial");
        assert_eq!(found.root, Root::Record { item: false, name: "Readings".into() });
        let names: Vec<&str> = found.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["records", "device", "serial"]);
        assert_eq!(found.members[0].filter, Some(Filter::Number(2)));
        assert!(matches!(found.members[1].filter, Some(Filter::Where(_))));
        let found = path("it.Reading.value");
        assert_eq!(
            (found.root, found.members.len()),
            (Root::Record { item: true, name: "Reading".into() }, 1)
        );
        assert!(path("Reading").members.is_empty());
    }

    #[test]
    fn operators_bind_as_one_reads_them() {
        let tree = |text| parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"));
        assert!(
            matches!(tree("not valued(PID-3) and 'a' == 'b'"), Expr::And(left, _) if matches!(*left, Expr::Not(_)))
        );
        assert_eq!(
            tree("'a' == 'a' or 'b' == 'b' and 'c' == 'd'"),
            tree("'a' == 'a' or ('b' == 'b' and 'c' == 'd')")
        );
        assert!(matches!(tree("OBX-29 not in ('QST', 'SCI')"), Expr::In { negated: true, .. }));
        assert!(matches!(tree("PID-3 ?? PID-4 ?? PID-2"), Expr::Coalesce(..)));
        assert!(matches!(tree("join(' ', XCN.6, XCN.2.1)"), Expr::Call { args, .. } if args.len() == 3));
        assert_eq!(tree("'it''s'"), Expr::Text("it's".into()));
    }

    #[test]
    fn mistakes_say_where() {
        for (text, at) in [
            ("PID-", 4),
            ("PID-0", 4),
            ("valued(PID-3", 12),
            ("PID-3 = 'x'", 6),
            ("'open", 0),
            ("a.b", 0),
            ("Reading.", 8),
            ("Reading.1", 8),
            ("PID-3 PID-4", 6),
            ("\"x\"", 0),
            ("PID-3 not 'x'", 10),
            ("", 0),
        ] {
            assert_eq!(parse(text).expect_err(text).at, at, "{text}");
        }
        assert!(parse(&"(".repeat(500)).is_err());
    }
}
