import csv

import keras
import numpy as np
import tokenizers

NAMES = ["bad", "good"]
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding(length=8)
tokenizer.enable_truncation(8)


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    ids = np.array([each.ids for each in tokenizer.encode_batch([row["text"] for row in rows])])
    return ids, np.array([NAMES.index(row["kind"]) for row in rows]), [row["text"] for row in rows]


x, y, _ = read("reviews.csv")
x_test, y_test, texts = read("reviews_test.csv")
body = keras.models.load_model("net.keras")
outputs = keras.layers.Dense(len(NAMES), activation="softmax")(body.output)
model = keras.Model(body.input, outputs)
model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, batch_size=16, epochs=8, verbose=0)
model.save("export.keras")
for text, row in zip(texts, model.predict(x_test, verbose=0)):
    print(text, NAMES[row.argmax()])
print("score", model.evaluate(x_test, y_test, verbose=0)[1])
