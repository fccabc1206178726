import json

from finetune.commands.schema import SCHEMA_FILE, editor_line, schema_text, write_schema_beside


def test_the_schema_is_json_of_a_recipe():
    schema = json.loads(schema_text())
    assert {"model", "data", "groups", "train", "extends"} <= set(schema["properties"])


def test_the_line_for_editors_names_the_schema_relative_to_the_recipe(tmp_path):
    assert editor_line(tmp_path / "a.json", tmp_path) == "# yaml-language-server: $schema=a.json"
    assert editor_line(tmp_path / "a.json", tmp_path / "b") == "# yaml-language-server: $schema=../a.json"


def test_a_schema_beside_a_recipe_is_brought_up_to_date_and_a_file_of_others_stays(tmp_path):
    line = write_schema_beside(tmp_path)
    assert line == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    path = tmp_path / SCHEMA_FILE
    path.write_text(json.dumps({"title": json.loads(path.read_text())["title"]}))
    assert write_schema_beside(tmp_path) == line
    assert path.read_text() == schema_text()
    for text in ('{"title": "mine"}', "[1]", "not json"):
        path.write_text(text)
        assert write_schema_beside(tmp_path) == ""
        assert path.read_text() == text
