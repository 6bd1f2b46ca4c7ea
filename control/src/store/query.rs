//! Queries that run on either database: one text with `$1` placeholders, the same values, the same
//! rows. `sqlx` does the work; this only says which of its two databases is meant, at run time.
//!
//! Values are integers, text, bytes and booleans, and nothing else: those mean the same on both
//! (ADR 0004). A value that is absent keeps its type, since PostgreSQL asks for it.

use std::borrow::Cow;
use std::marker::PhantomData;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, FromRow};

use super::Connection;

/// One value of a statement.
#[derive(Debug, Clone)]
pub enum Value<'q> {
    Int(Option<i64>),
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
    Bool(Option<bool>),
}

macro_rules! values {
    ($($from:ty => $of:ident($value:ident) $made:expr;)*) => {
        $(impl<'q> From<$from> for Value<'q> {
            fn from($value: $from) -> Value<'q> {
                Value::$of($made)
            }
        })*
    };
}

values! {
    i64 => Int(value) Some(value);
    Option<i64> => Int(value) value;
    bool => Bool(value) Some(value);
    &'q str => Text(value) Some(Cow::Borrowed(value));
    Option<&'q str> => Text(value) value.map(Cow::Borrowed);
    &'q String => Text(value) Some(Cow::Borrowed(value.as_str()));
    String => Text(value) Some(Cow::Owned(value));
    Option<String> => Text(value) value.map(Cow::Owned);
    &'q Option<String> => Text(value) value.as_deref().map(Cow::Borrowed);
    &'q [u8] => Bytes(value) Some(Cow::Borrowed(value));
    &'q Vec<u8> => Bytes(value) Some(Cow::Borrowed(value.as_slice()));
    Vec<u8> => Bytes(value) Some(Cow::Owned(value));
    Option<Vec<u8>> => Bytes(value) value.map(Cow::Owned);
}

/// A row that both databases can give.
pub trait Row:
    Send + Unpin + for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + 'static
{
}

impl<T> Row for T where
    T: Send + Unpin + for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + 'static
{
}

/// A statement and its values; made by [`query`], [`query_as`] and [`query_scalar`].
pub struct Query<'q, R> {
    sql: &'static str,
    values: Vec<Value<'q>>,
    row: PhantomData<fn() -> R>,
}

/// A statement of which only the number of touched rows is wanted.
pub fn query<'q>(sql: &'static str) -> Query<'q, ()> {
    Query::new(sql)
}

/// A statement that gives rows.
pub fn query_as<'q, R>(sql: &'static str) -> Query<'q, R> {
    Query::new(sql)
}

/// A statement that gives rows of one column.
pub fn query_scalar<'q, T>(sql: &'static str) -> Scalar<'q, T> {
    Scalar(Query::new(sql))
}

macro_rules! run {
    ($self:ident, $on:ident, $query:ident :: <$row:ty>, $run:ident) => {
        match $on {
            Connection::Sqlite(tx) => {
                let arguments = sqlite($self.values)?;
                seam::real(sqlx::query_as_with::<_, $row, _>($self.sql, arguments).$run(&mut **tx))
                    .await
            }
            Connection::Postgres(tx) => {
                let arguments = postgres($self.values)?;
                sqlx::query_as_with::<_, $row, _>($self.sql, arguments).$run(&mut **tx).await
            }
        }
    };
}

impl<'q, R> Query<'q, R> {
    fn new(sql: &'static str) -> Query<'q, R> {
        Query { sql, values: Vec::new(), row: PhantomData }
    }

    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Query<'q, R> {
        self.values.push(value.into());
        self
    }
}

impl Query<'_, ()> {
    /// How many rows it touched.
    pub async fn execute(self, on: &mut Connection) -> Result<u64, sqlx::Error> {
        match on {
            Connection::Sqlite(tx) => {
                let arguments = sqlite(self.values)?;
                let query = sqlx::query_with(self.sql, arguments);
                let done = seam::real(query.execute(&mut **tx)).await?;
                Ok(done.rows_affected())
            }
            Connection::Postgres(tx) => {
                let arguments = postgres(self.values)?;
                let done = sqlx::query_with(self.sql, arguments).execute(&mut **tx).await?;
                Ok(done.rows_affected())
            }
        }
    }
}

impl<R: Row> Query<'_, R> {
    pub async fn fetch_one(self, on: &mut Connection) -> Result<R, sqlx::Error> {
        run!(self, on, query_as::<R>, fetch_one)
    }

    pub async fn fetch_optional(self, on: &mut Connection) -> Result<Option<R>, sqlx::Error> {
        run!(self, on, query_as::<R>, fetch_optional)
    }

    pub async fn fetch_all(self, on: &mut Connection) -> Result<Vec<R>, sqlx::Error> {
        run!(self, on, query_as::<R>, fetch_all)
    }
}

/// As [`Query`], for rows of one column.
pub struct Scalar<'q, T>(Query<'q, (T,)>);

impl<'q, T> Scalar<'q, T>
where
    (T,): Row,
{
    pub fn bind(self, value: impl Into<Value<'q>>) -> Scalar<'q, T> {
        Scalar(self.0.bind(value))
    }

    pub async fn fetch_one(self, on: &mut Connection) -> Result<T, sqlx::Error> {
        self.0.fetch_one(on).await.map(|(value,)| value)
    }

    pub async fn fetch_optional(self, on: &mut Connection) -> Result<Option<T>, sqlx::Error> {
        Ok(self.0.fetch_optional(on).await?.map(|(value,)| value))
    }

    pub async fn fetch_all(self, on: &mut Connection) -> Result<Vec<T>, sqlx::Error> {
        Ok(self.0.fetch_all(on).await?.into_iter().map(|(value,)| value).collect())
    }
}

macro_rules! arguments {
    ($name:ident, $arguments:ty) => {
        fn $name(values: Vec<Value<'_>>) -> Result<$arguments, sqlx::Error> {
            let mut arguments = <$arguments>::default();
            for value in values {
                match value {
                    Value::Int(value) => arguments.add(value),
                    Value::Text(value) => arguments.add(value.map(Cow::into_owned)),
                    Value::Bytes(value) => arguments.add(value.map(Cow::into_owned)),
                    Value::Bool(value) => arguments.add(value),
                }
                .map_err(sqlx::Error::Encode)?;
            }
            Ok(arguments)
        }
    };
}

arguments!(sqlite, SqliteArguments);
arguments!(postgres, PgArguments);
