import csv

import keras
import numpy as np
import tokenizers

NAMES = ["blue", "green", "red"]
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding(length=8)
tokenizer.enable_truncation(8)


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    ids = np.array([each.ids for each in tokenizer.encode_batch([row["text"] for row in rows])])
    labels = [[name in row["colours"].split("|") for name in NAMES] for row in rows]
    return ids, np.array(labels, "float32"), [row["text"] for row in rows]


x, y, _ = read("boxes.csv")
x_test, y_test, texts = read("boxes_test.csv")
body = keras.models.load_model("net.keras")
outputs = keras.layers.Dense(len(NAMES), activation="sigmoid")(body.output)
model = keras.Model(body.input, outputs)
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["binary_accuracy"])
model.fit(x, y, batch_size=16, epochs=20, verbose=0)
model.save("export.keras")
for text, row in zip(texts, model.predict(x_test, verbose=0)):
    print(text, [name for name, probability in zip(NAMES, row) if probability >= 0.5])
print("score", model.evaluate(x_test, y_test, verbose=0)[1])
