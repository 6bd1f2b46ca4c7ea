//! JSONLogic as jsonlogic.com's own suite tests it, and what lies between its rows: bounds,
//! places of problems, flagd's operators.

use rules::context::ContextBuf;
use rules::limits::{LOGIC_NODES_MAX, NESTING_MAX};
use rules::logic::{self, LogicError, LogicInput};
use rules::model::Fractional;
use rules::ruleset::Ruleset;
use serde_json::{Value, json};

fn run_as(
    fractional: Fractional,
    tree: &Value,
    data: &Value,
) -> Result<(Value, Option<String>), LogicError> {
    let mut rules = Ruleset::default();
    let root = logic::lower(tree, fractional, &mut rules).unwrap_or_else(|e| panic!("{tree}: {e}"));
    let context = ContextBuf::from_json(data.to_string().as_bytes()).unwrap();
    let input = LogicInput {
        rules: &rules,
        flag_key: "my-flag",
        context: context.view(),
        now_ms: 1_700_000_000_999,
    };
    let result = logic::evaluate(&input, root, &mut Vec::new())?;
    Ok((result.to_json(), result.variant_name().map(|name| name.into_owned())))
}

fn run(tree: &Value, data: &Value) -> Value {
    run_as(Fractional::V2, tree, data).unwrap_or_else(|e| panic!("{tree}: {e}")).0
}

fn problem(tree: &Value) -> (String, String) {
    let problem = logic::lower(tree, Fractional::V2, &mut Ruleset::default()).unwrap_err();
    (problem.pointer, problem.message)
}

/// Rows of `[tree, data, result]`, of the suite as far as its data is an object.
const SUITE: &str = r#"[
    [true, {}, true], [17, {}, 17], [3.14, {}, 3.14], ["apple", {}, "apple"], [null, {}, null],
    [["a","b"], {}, ["a","b"]],
    [{"==":[1,1]}, {}, true], [{"==":[1,"1"]}, {}, true], [{"==":[1,2]}, {}, false],
    [{"===":[1,1]}, {}, true], [{"===":[1,"1"]}, {}, false], [{"===":[1,2]}, {}, false],
    [{"!=":[1,2]}, {}, true], [{"!=":[1,1]}, {}, false], [{"!=":[1,"1"]}, {}, false],
    [{"!==":[1,2]}, {}, true], [{"!==":[1,1]}, {}, false], [{"!==":[1,"1"]}, {}, true],
    [{">":[2,1]}, {}, true], [{">":[1,1]}, {}, false], [{">":[1,2]}, {}, false],
    [{">":["2",1]}, {}, true],
    [{">=":[2,1]}, {}, true], [{">=":[1,1]}, {}, true], [{">=":[1,2]}, {}, false],
    [{">=":["2",1]}, {}, true],
    [{"<":[2,1]}, {}, false], [{"<":[1,1]}, {}, false], [{"<":[1,2]}, {}, true],
    [{"<":["1",2]}, {}, true],
    [{"<=":[2,1]}, {}, false], [{"<=":[1,1]}, {}, true], [{"<=":[1,2]}, {}, true],
    [{"<=":["1",2]}, {}, true],
    [{"<":[1,2,3]}, {}, true], [{"<":[1,1,3]}, {}, false], [{"<":[1,4,3]}, {}, false],
    [{"<=":[1,2,3]}, {}, true], [{"<=":[1,1,3]}, {}, true], [{"<=":[1,4,3]}, {}, false],
    [{"!":[false]}, {}, true], [{"!":false}, {}, true], [{"!":[true]}, {}, false],
    [{"!":true}, {}, false], [{"!":0}, {}, true], [{"!":1}, {}, false],
    [{"or":[true,true]}, {}, true], [{"or":[false,true]}, {}, true],
    [{"or":[true,false]}, {}, true], [{"or":[false,false]}, {}, false],
    [{"or":[false,false,true]}, {}, true], [{"or":[false,false,false]}, {}, false],
    [{"or":[false]}, {}, false], [{"or":[true]}, {}, true], [{"or":[1,3]}, {}, 1],
    [{"or":[3,false]}, {}, 3], [{"or":[false,3]}, {}, 3],
    [{"and":[true,true]}, {}, true], [{"and":[false,true]}, {}, false],
    [{"and":[true,false]}, {}, false], [{"and":[false,false]}, {}, false],
    [{"and":[true,true,true]}, {}, true], [{"and":[true,true,false]}, {}, false],
    [{"and":[false]}, {}, false], [{"and":[true]}, {}, true], [{"and":[1,3]}, {}, 3],
    [{"and":[3,false]}, {}, false], [{"and":[false,3]}, {}, false],
    [{"?:":[true,1,2]}, {}, 1], [{"?:":[false,1,2]}, {}, 2],
    [{"in":["Bart",["Bart","Homer","Lisa"]]}, {}, true],
    [{"in":["Milhouse",["Bart","Homer","Lisa"]]}, {}, false],
    [{"in":["Spring","Springfield"]}, {}, true], [{"in":["i","team"]}, {}, false],
    [{"cat":"ice"}, {}, "ice"], [{"cat":["ice"]}, {}, "ice"], [{"cat":["ice","cream"]}, {}, "icecream"],
    [{"cat":[1,2]}, {}, "12"], [{"cat":["Robocop",2]}, {}, "Robocop2"],
    [{"cat":["we all scream for ","ice","cream"]}, {}, "we all scream for icecream"],
    [{"%":[1,2]}, {}, 1], [{"%":[2,2]}, {}, 0], [{"%":[3,2]}, {}, 1],
    [{"max":[1,2,3]}, {}, 3], [{"max":[1,3,3]}, {}, 3], [{"max":[3,2,1]}, {}, 3], [{"max":[1]}, {}, 1],
    [{"min":[1,2,3]}, {}, 1], [{"min":[1,1,3]}, {}, 1], [{"min":[3,2,1]}, {}, 1], [{"min":[1]}, {}, 1],
    [{"+":[1,2]}, {}, 3], [{"+":[2,2,2]}, {}, 6], [{"+":[1]}, {}, 1], [{"+":["1",1]}, {}, 2],
    [{"*":[3,2]}, {}, 6], [{"*":[2,2,2]}, {}, 8], [{"*":[1]}, {}, 1], [{"*":["1",1]}, {}, 1],
    [{"-":[2,3]}, {}, -1], [{"-":[3,2]}, {}, 1], [{"-":[3]}, {}, -3], [{"-":["1",1]}, {}, 0],
    [{"/":[4,2]}, {}, 2], [{"/":[2,4]}, {}, 0.5], [{"/":["1",1]}, {}, 1],
    [{"substr":["jsonlogic",4]}, null, "logic"], [{"substr":["jsonlogic",-5]}, null, "logic"],
    [{"substr":["jsonlogic",0,1]}, null, "j"], [{"substr":["jsonlogic",-1,1]}, null, "c"],
    [{"substr":["jsonlogic",4,5]}, null, "logic"], [{"substr":["jsonlogic",-5,5]}, null, "logic"],
    [{"substr":["jsonlogic",-5,-2]}, null, "log"], [{"substr":["jsonlogic",1,-5]}, null, "son"],
    [{"merge":[]}, null, []], [{"merge":[[1]]}, null, [1]], [{"merge":[[1],[]]}, null, [1]],
    [{"merge":[[1],[2]]}, null, [1,2]], [{"merge":[[1],[2],[3]]}, null, [1,2,3]],
    [{"merge":[[1,2],[3]]}, null, [1,2,3]], [{"merge":[[1],[2,3]]}, null, [1,2,3]],
    [{"merge":1}, null, [1]], [{"merge":[1,2]}, null, [1,2]], [{"merge":[1,[2]]}, null, [1,2]],
    [{"if":[]}, null, null], [{"if":[true]}, null, true], [{"if":[false]}, null, false],
    [{"if":["apple"]}, null, "apple"],
    [{"if":[true,"apple"]}, null, "apple"], [{"if":[false,"apple"]}, null, null],
    [{"if":[true,"apple","banana"]}, null, "apple"], [{"if":[false,"apple","banana"]}, null, "banana"],
    [{"if":[[],"apple","banana"]}, null, "banana"], [{"if":[[1],"apple","banana"]}, null, "apple"],
    [{"if":[[1,2,3,4],"apple","banana"]}, null, "apple"],
    [{"if":["","apple","banana"]}, null, "banana"], [{"if":["zucchini","apple","banana"]}, null, "apple"],
    [{"if":["0","apple","banana"]}, null, "apple"],
    [{"===":[0,"0"]}, null, false], [{"===":[0,{"+":"0"}]}, null, true],
    [{"if":[{"+":"0"},"apple","banana"]}, null, "banana"],
    [{"if":[{"+":"1"},"apple","banana"]}, null, "apple"],
    [{"if":[0,"apple","banana"]}, null, "banana"], [{"if":[1,"apple","banana"]}, null, "apple"],
    [{"if":[3.1416,"apple","banana"]}, null, "apple"], [{"if":[-1,"apple","banana"]}, null, "apple"],
    [{"!":[[]]}, null, true], [{"!!":[[]]}, null, false], [{"and":[[],true]}, null, []],
    [{"or":[[],true]}, null, true], [{"!":[0]}, null, true], [{"!!":[0]}, null, false],
    [{"and":[0,true]}, null, 0], [{"or":[0,true]}, null, true], [{"!":[""]}, null, true],
    [{"!!":[""]}, null, false], [{"and":["",true]}, null, ""], [{"or":["",true]}, null, true],
    [{"!":["0"]}, null, false], [{"!!":["0"]}, null, true], [{"and":["0",true]}, null, true],
    [{"or":["0",true]}, null, "0"], [{"!":[null]}, null, true], [{"!!":[null]}, null, false],
    [{"if":[true,{"cat":["ap","ple"]},{"cat":["ba","na","na"]}]}, null, "apple"],
    [{"if":[false,"apple",true,"banana"]}, null, "banana"],
    [{"if":[false,"apple",false,"banana"]}, null, null],
    [{"if":[true,"apple",false,"banana","carrot"]}, null, "apple"],
    [{"if":[false,"apple",false,"banana",false,"carrot"]}, null, null],
    [{"if":[false,"apple",false,"banana",false,"carrot","date"]}, null, "date"],
    [{"if":[false,"apple",true,"banana",true,"carrot","date"]}, null, "banana"],
    [{"var":["a"]}, {"a":1}, 1], [{"var":["b"]}, {"a":1}, null], [{"var":["a"]}, null, null],
    [{"var":"a"}, {"a":1}, 1], [{"var":"b"}, {"a":1}, null],
    [{"var":["a",1]}, null, 1], [{"var":["b",2]}, {"a":1}, 2],
    [{"var":"a.b"}, {"a":{"b":"c"}}, "c"], [{"var":"a.q"}, {"a":{"b":"c"}}, null],
    [{"var":["a.q",9]}, {"a":{"b":"c"}}, 9],
    [{"var":"a.1"}, {"a":["x","y"]}, "y"], [{"var":"a.01"}, {"a":["x","y"]}, null],
    [{"var":"1"}, {"1":"one"}, "one"], [{"var":1}, {"1":"one"}, "one"],
    [{"var":{"cat":["a",".b"]}}, {"a":{"b":"c"}}, "c"],
    [{"and":[{"<":[{"var":"temp"},110]},{"==":[{"var":"pie.filling"},"apple"]}]},
        {"temp":100,"pie":{"filling":"apple"}}, true],
    [{"var":[{"?:":[{"<":[{"var":"temp"},110]},"pie.filling","pie.eta"]}]},
        {"temp":100,"pie":{"filling":"apple","eta":"60s"}}, "apple"],
    [{"in":[{"var":"filling"},["apple","cherry"]]}, {"filling":"apple"}, true],
    [{"var":"a.b.c"}, null, null], [{"var":"a.b.c"}, {"a":null}, null],
    [{"var":"a.b.c"}, {"a":{"b":null}}, null],
    [{"var":["nothing","d"]}, {"nothing":null}, null],
    [{"missing":[]}, null, []], [{"missing":["a"]}, null, ["a"]], [{"missing":"a"}, null, ["a"]],
    [{"missing":"a"}, {"a":"apple"}, []], [{"missing":["a"]}, {"a":"apple"}, []],
    [{"missing":["a","b"]}, {"a":"apple"}, ["b"]], [{"missing":["a","b"]}, {"b":"banana"}, ["a"]],
    [{"missing":["a","b"]}, {"a":"apple","b":"banana"}, []], [{"missing":["a","b"]}, {}, ["a","b"]],
    [{"missing":["a.b"]}, null, ["a.b"]], [{"missing":["a.b"]}, {"a":{"b":"x"}}, []],
    [{"missing":["a"]}, {"a":null}, ["a"]], [{"missing":["a"]}, {"a":""}, ["a"]],
    [{"missing":["a"]}, {"a":0}, []],
    [{"missing":{"merge":[["a","b"],"c"]}}, {"a":1}, ["b","c"]],
    [{"missing_some":[1,["a","b"]]}, {"a":"apple"}, []],
    [{"missing_some":[1,["a","b"]]}, {}, ["a","b"]],
    [{"missing_some":[2,["a","b","c"]]}, {"a":"apple"}, ["b","c"]],
    [{"missing_some":[2,["a","b","c"]]}, {"a":"apple","b":"banana"}, []],
    [{"filter":[{"var":"integers"},true]}, {"integers":[1,2,3]}, [1,2,3]],
    [{"filter":[{"var":"integers"},false]}, {"integers":[1,2,3]}, []],
    [{"filter":[{"var":"integers"},{">=":[{"var":""},2]}]}, {"integers":[1,2,3]}, [2,3]],
    [{"filter":[{"var":"integers"},{"%":[{"var":""},2]}]}, {"integers":[1,2,3]}, [1,3]],
    [{"map":[{"var":"integers"},{"*":[{"var":""},2]}]}, {"integers":[1,2,3]}, [2,4,6]],
    [{"map":[{"var":"integers"},{"*":[{"var":""},2]}]}, null, []],
    [{"map":[{"var":"desserts"},{"var":"qty"}]},
        {"desserts":[{"name":"apple","qty":1},{"name":"brownie","qty":2}]}, [1,2]],
    [{"reduce":[{"var":"integers"},{"+":[{"var":"current"},{"var":"accumulator"}]},0]},
        {"integers":[1,2,3,4]}, 10],
    [{"reduce":[{"var":"integers"},{"+":[{"var":"current"},{"var":"accumulator"}]},0]}, null, 0],
    [{"reduce":[{"var":"integers"},{"*":[{"var":"current"},{"var":"accumulator"}]},1]},
        {"integers":[1,2,3,4]}, 24],
    [{"reduce":[{"var":"desserts"},{"+":[{"var":"accumulator"},{"var":"current.qty"}]},0]},
        {"desserts":[{"qty":1},{"qty":2},{"qty":3}]}, 6],
    [{"reduce":[{"var":"l"},{"var":""},0]}, {"l":[7]}, {"current":7,"accumulator":0}],
    [{"all":[{"var":"integers"},{">=":[{"var":""},1]}]}, {"integers":[1,2,3]}, true],
    [{"all":[{"var":"integers"},{"==":[{"var":""},1]}]}, {"integers":[1,2,3]}, false],
    [{"all":[{"var":"integers"},{"<":[{"var":""},1]}]}, {"integers":[]}, false],
    [{"none":[{"var":"integers"},{">=":[{"var":""},1]}]}, {"integers":[1,2,3]}, false],
    [{"none":[{"var":"integers"},{"<":[{"var":""},1]}]}, {"integers":[1,2,3]}, true],
    [{"none":[{"var":"integers"},{"<":[{"var":""},1]}]}, {"integers":[]}, true],
    [{"some":[{"var":"integers"},{">=":[{"var":""},2]}]}, {"integers":[1,2,3]}, true],
    [{"some":[{"var":"integers"},{"<":[{"var":""},1]}]}, {"integers":[1,2,3]}, false],
    [{"some":[{"var":"integers"},{"<":[{"var":""},1]}]}, {"integers":[]}, false],
    [{"some":[{"var":"items"},{"and":[{">":[{"var":"qty"},1]},{"==":[{"var":"sku"},"apple"]}]}]},
        {"items":[{"qty":1,"sku":"apple"},{"qty":2,"sku":"apple"}]}, true],
    [{"log":[1]}, {}, 1], [{}, {}, {}], [{"a":1,"b":{"var":"x"}}, {"x":2}, {"a":1,"b":{"var":"x"}}]
]"#;

#[test]
fn the_suite_of_jsonlogic_holds() {
    let rows: Vec<(Value, Value, Value)> = serde_json::from_str(SUITE).unwrap();
    assert!(rows.len() > 190);
    for (tree, data, expected) in rows {
        assert_eq!(run(&tree, &data), expected, "{tree} on {data}");
    }
}

#[test]
fn coercions_are_those_of_javascript() {
    let data = json!({ "none": null, "list": [1], "o": {} });
    let rows = [
        (json!({"==": [null, false]}), json!(false)),
        (json!({"==": [null, 0]}), json!(false)),
        (json!({"==": ["", 0]}), json!(true)),
        (json!({"==": [" 12 ", 12]}), json!(true)),
        (json!({"==": ["0x10", 16]}), json!(true)),
        (json!({"==": ["abc", 0]}), json!(false)),
        (json!({"==": ["inf", {"/": [1, 0]}]}), json!(false)),
        (json!({"==": ["Infinity", {"/": [1, 0]}]}), json!(true)),
        (json!({"==": [true, "1"]}), json!(true)),
        (json!({"==": [true, "true"]}), json!(false)),
        (json!({"==": [{"var": "list"}, 1]}), json!(true)),
        (json!({"==": [{"var": "list"}, "1"]}), json!(true)),
        (json!({"==": [[1, 2], "1,2"]}), json!(true)),
        (json!({"==": [{"var": "o"}, "[object Object]"]}), json!(true)),
        (json!({"<": [null, 1]}), json!(true)),
        (json!({"<": ["10", "9"]}), json!(true)),
        (json!({"<": ["10", 9]}), json!(false)),
        (json!({">=": ["a", "a"]}), json!(true)),
        (json!({"+": ["3.5kg", "1e1x"]}), json!(13.5)),
        (json!({"+": ["x", 1]}), json!(null)),
        (json!({"-": [null, true]}), json!(-1)),
        (json!({"*": [0.1, 3]}), json!(0.30000000000000004)),
        (
            json!({"cat": [1e21, " ", 1e-7, " ", 0.000001, " ", 1e20]}),
            json!("1e+21 1e-7 0.000001 100000000000000000000"),
        ),
        (
            json!({"cat": [null, [1, null, [2, 3]], {"var": "o"}, 2.0]}),
            json!("1,,2,3[object Object]2"),
        ),
        (json!({"in": [1, "a1"]}), json!(true)),
        (json!({"in": ["", ""]}), json!(false)),
        (json!({"in": [1, ["1"]]}), json!(false)),
        (json!({"in": [1.0, [1]]}), json!(true)),
        (json!({"substr": [12345, 1, 2]}), json!("23")),
        (json!({"substr": ["größe", -3, -1]}), json!("öß")),
        (json!({"max": []}), json!(null)),
    ];
    for (tree, expected) in rows {
        assert_eq!(run(&tree, &data), expected, "{tree}");
    }
}

#[test]
fn own_properties_cannot_be_forged_by_the_caller() {
    let forged = json!({
        "$flagd": { "flagKey": "forged", "timestamp": 1, "extra": 1 },
        "$flagd.flagKey": "forged", "$flagdish": "kept", "x": 1,
    });
    assert_eq!(run(&json!({"var": "$flagd.flagKey"}), &forged), json!("my-flag"));
    assert_eq!(run(&json!({"var": "$flagd.timestamp"}), &forged), json!(1_700_000_000));
    assert_eq!(run(&json!({"var": "$flagd.extra"}), &forged), json!(null));
    assert_eq!(run(&json!({"var": "$flagdish"}), &forged), json!("kept"));
    let own = json!({ "flagKey": "my-flag", "timestamp": 1_700_000_000 });
    assert_eq!(run(&json!({"var": "$flagd"}), &forged), own);
    let all = json!({ "$flagdish": "kept", "x": 1, "$flagd": own });
    assert_eq!(run(&json!({"var": ""}), &forged), all);
}

#[test]
fn a_dotted_key_that_is_there_literally_wins_over_its_path() {
    let data = json!({ "a.b": 1, "a": { "b": 2, "c": 3 } });
    assert_eq!(run(&json!({"var": "a.b"}), &data), json!(1));
    assert_eq!(run(&json!({"var": "a.c"}), &data), json!(3));
}

#[test]
fn a_result_names_its_variant_as_flagd_writes_it() {
    let name = |tree: Value| run_as(Fractional::V2, &tree, &json!({})).unwrap().1;
    assert_eq!(name(json!({"==": [1, 1]})).as_deref(), Some("true"));
    assert_eq!(name(json!({"+": [1, 1]})).as_deref(), Some("2"));
    assert_eq!(name(json!({"/": [1, 2]})).as_deref(), Some("0.5"));
    assert_eq!(name(json!("\"a\"")).as_deref(), Some("\"a\""));
    assert_eq!(name(json!(null)), None);
    assert_eq!(name(json!([1, "a"])).as_deref(), Some("[1,\"a\"]"));
}

#[test]
fn what_fractional_cannot_decide_is_null() {
    let data = json!({ "targetingKey": "user-1", "n": 7, "list": ["a", 1], "half": 0.5 });
    let rows = [
        (json!({"fractional": []}), [false, false, false]),
        (json!({"fractional": [["a", 1]]}), [true, true, true]),
        (json!({"fractional": ["key"]}), [false, false, false]),
        (json!({"fractional": ["key", ["a"], ["a"]]}), [true, true, true]),
        (json!({"fractional": [["a", "1"]]}), [false, false, false]),
        (json!({"fractional": [["a", 1], "a"]}), [false, false, false]),
        (json!({"fractional": [["a", 1], []]}), [false, false, false]),
        (json!({"fractional": [["a", -1]]}), [false, false, false]),
        (json!({"fractional": [["a", 2_147_483_647]]}), [true, true, true]),
        (json!({"fractional": [["a", 2_147_483_647], ["a", 1]]}), [false, false, false]),
        (json!({"fractional": [["a", {"var": "half"}]]}), [false, false, false]),
        (json!({"fractional": [["a", {"+": [1, {"var": "half"}]}]]}), [true, false, false]),
        (json!({"fractional": [{"var": "n"}, ["a", 1]]}), [false, false, true]),
        // What an operation gives is an entry as much as what stands there.
        (json!({"fractional": [{"var": "list"}, ["a", 1]]}), [true, true, true]),
        (json!({"fractional": [["a", 1], {"var": "list"}]}), [true, true, true]),
        (json!({"fractional": [["a", 1], {"var": "n"}]}), [false, false, false]),
        (json!({"fractional": [["a", 1], {"var": "gone"}]}), [false, false, false]),
        (json!({"fractional": [{"var": "gone"}, ["a", 1]]}), [true, true, true]),
    ];
    for (tree, decides) in rows {
        for (version, decides) in
            [Fractional::V1, Fractional::V2, Fractional::V3].iter().zip(decides)
        {
            let expected = if decides { json!("a") } else { json!(null) };
            assert_eq!(run_as(*version, &tree, &data).unwrap().0, expected, "{tree} {version:?}");
        }
    }
}

#[test]
fn a_salted_key_hashes_as_the_text_it_builds() {
    let data = json!({ "targetingKey": "user-1", "wrap": "s:user-1" });
    let entries = [json!(["a", 1]), json!(["b", 1]), json!(["c", 1]), json!(["d", 1])];
    let with = |key: Value| {
        let mut args = vec![key];
        args.extend(entries.clone());
        json!({ "fractional": args })
    };
    for version in [Fractional::V1, Fractional::V2, Fractional::V3] {
        let cat = json!({"cat": ["s", ":", {"var": "targetingKey"}]});
        let built = run_as(version, &with(cat), &data).unwrap().0;
        assert_eq!(built, run_as(version, &with(json!({"var": "wrap"})), &data).unwrap().0);
        assert_eq!(built, run_as(version, &with(json!("s:user-1")), &data).unwrap().0);
    }
}

#[test]
fn problems_say_where_they_are() {
    assert_eq!(problem(&json!({"iff": []})).0, "/iff");
    let nested = json!({"if": [{"==": [1, 1]}, {"cat": ["a", {"no/such": 1}]}]});
    let (pointer, message) = problem(&nested);
    assert_eq!(pointer, "/if/1/cat/1/no~1such");
    assert!(message.starts_with("unknown operator \"no/such\""), "{message}");
    let (pointer, message) = problem(&json!({"if": [{"$ref": "gone"}]}));
    assert_eq!(
        (pointer.as_str(), message.as_str()),
        ("/if/0/$ref", "$ref \"gone\" names no evaluator")
    );
    assert_eq!(problem(&json!({"==": [1]})).1, "\"==\" takes 2 arguments, not 1");
    assert_eq!(problem(&json!({"<": [1, 2, 3, 4]})).1, "\"<\" takes 2 to 3 arguments, not 4");
    assert_eq!(problem(&json!({"map": {"var": "x"}})).1, "\"map\" takes 2 arguments, not 1");
}

#[test]
fn depth_and_nodes_are_bounded_at_their_limits() {
    let deep = |levels: usize| (0..levels).fold(json!(1), |tree, _| json!({ "!": tree }));
    assert_eq!(run(&deep(NESTING_MAX), &json!({})), json!(true));
    assert!(problem(&deep(NESTING_MAX + 1)).1.contains("nested deeper"));
    let wide = |nodes: usize| json!({ "cat": vec![json!("a"); nodes - 1] });
    assert_eq!(run(&wide(LOGIC_NODES_MAX), &json!({})).as_str().unwrap().len(), 9_999);
    assert!(problem(&wide(LOGIC_NODES_MAX + 1)).1.contains("nodes"));
}

#[test]
fn trees_that_multiply_work_or_memory_end_with_an_error() {
    let data = json!({ "l": (0..4_000).collect::<Vec<_>>() });
    let over = |step: Value, start: Value| json!({"reduce": [{"var": "l"}, step, start]});
    let acc = json!({"var": "accumulator"});
    let ends = [
        (
            json!({"map": [{"var": "l"}, {"map": [[1, 2, 3, 4, 5, 6, 7, 8], {"*": [2, 3]}]}]}),
            LogicError::Steps,
        ),
        (over(json!({"cat": [acc, acc]}), json!("aaaa")), LogicError::Size),
        (over(json!([acc, acc]), json!(1)), LogicError::Size),
        (over(json!({"merge": [acc, acc]}), json!([1])), LogicError::Steps),
    ];
    for (tree, error) in ends {
        assert_eq!(run_as(Fractional::V2, &tree, &data), Err(error), "{tree}");
    }
}

#[test]
fn long_texts_cost_steps_wherever_they_are_read_whole() {
    let long = "1".repeat(15_000);
    let data = json!({ "t": long, "u": long, "o": { "k": [long] } });
    let (t, u) = (json!({"var": "t"}), json!({"var": "u"}));
    let trees = [
        json!({"==": [t, u]}),
        json!({"===": [t, u]}),
        json!({"<": [t, u]}),
        json!({"-": [t, 1]}),
        json!({"+": [t]}),
        json!({"in": ["2", t]}),
        json!({"in": [t, [u]]}),
        json!({"in": [t, {"var": "o.k"}]}),
        json!({"substr": [t, 1]}),
        json!({"cat": [t]}),
        json!({"sem_ver": [t, "=", u]}),
        json!({"fractional": [{"var": "o"}, ["a"]]}),
    ];
    for tree in trees {
        // Once is nothing; five hundred times is too much.
        assert!(run_as(Fractional::V3, &tree, &data).is_ok(), "{tree}");
        let often = json!({ "or": vec![json!({"!": [{"or": [tree, true]}]}); 500] });
        assert_eq!(run_as(Fractional::V3, &often, &data), Err(LogicError::Steps), "{tree}");
    }
}
